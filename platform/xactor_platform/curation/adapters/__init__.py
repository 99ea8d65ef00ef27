"""Which videos, and which parts of them, published datasets name: read from their own files. Nothing is downloaded.

A dataset's videos are found in the folder by their names, whatever their kind; what is not there is told.
"""

from xactor_platform.curation.adapters.celebv_hq import celebv_hq
from xactor_platform.curation.adapters.hdtf import hdtf
from xactor_platform.curation.adapters.ravdess import ravdess
from xactor_platform.curation.files import list_videos
from xactor_platform.curation.work import Fate, Video

Found = tuple[list[Video], list[tuple[str, Fate]]]


def find_videos(folder: str, dataset: str, metadata: str | None) -> Found:
    """The videos to look at; and with their keys the fates of those that cannot be. ValueError: there are none."""
    if dataset in ("hdtf", "celebv-hq") and metadata is None:
        what = "the folder of its *_annotion_time.txt" if dataset == "hdtf" else "its celebvhq_info.json"
        raise ValueError(f"dataset {dataset} needs --metadata: {what}")
    there, refused = list_videos(folder)
    if dataset == "folder":
        return there, refused
    if dataset == "ravdess":
        found, missing = ravdess(there), []
    else:
        found, missing = (hdtf if dataset == "hdtf" else celebv_hq)(there, metadata or "")
    if not found:
        raise ValueError(f"{folder}: none of its {len(there)} videos is of {dataset}")
    return sorted(found, key=lambda video: video.key), [*refused, *missing]
