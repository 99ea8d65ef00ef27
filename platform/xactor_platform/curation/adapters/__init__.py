"""Find the videos and parts of videos that the metadata of published datasets name. Nothing is downloaded.

A dataset's videos are found in the folder by their names without suffixes. The report names the missing ones.
"""

from xactor_platform.curation.adapters.celebv_hq import celebv_hq
from xactor_platform.curation.adapters.hdtf import hdtf
from xactor_platform.curation.adapters.ravdess import ravdess
from xactor_platform.curation.adapters.speaker_list import listed_speakers
from xactor_platform.curation.messages import Fate, Video
from xactor_platform.curation.video_files import list_videos

Found = tuple[list[Video], list[tuple[str, Fate]]]


def find_videos(folder: str, dataset: str, metadata: str | None) -> Found:
    """Return the videos to examine, and the keys and fates of those that are refused or missing.

    Args:
        folder: folder or URI of all videos.
        dataset: see `CurationConfig`.
        metadata: file or folder of the dataset.

    Raises:
        ValueError: there are no videos, or the metadata is missing or invalid.
    """
    if dataset in ("hdtf", "celebv-hq") and metadata is None:
        needed = "the folder of its *_annotion_time.txt" if dataset == "hdtf" else "its celebvhq_info.json"
        raise ValueError(f"dataset {dataset} needs --metadata: {needed}")
    existing, refused = list_videos(folder)
    if dataset == "folder" and metadata is None:
        return existing, refused
    if dataset == "folder":
        found, missing = listed_speakers(existing, metadata or "")
    elif dataset == "ravdess":
        found, missing = ravdess(existing), []
    elif dataset == "hdtf":
        found, missing = hdtf(existing, metadata or "")
    else:
        found, missing = celebv_hq(existing, metadata or "")
    if not found:
        raise ValueError(f"{folder}: none of its {len(existing)} videos belongs to {dataset}")
    return sorted(found, key=lambda video: video.key), [*refused, *missing]
