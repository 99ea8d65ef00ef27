"""Assemble the clips of a group of finished videos into shards (tar files).

`GroupPlan` assigns each video to a group. No shard holds clips of two groups.
"""

from dataclasses import replace
from typing import Any

from xactor_platform.curation.clip_report import write_fates
from xactor_platform.curation.copies import DUPLICATE
from xactor_platform.curation.messages import Fate
from xactor_platform.curation.people import KnownClip
from xactor_platform.curation.video_progress import VideoProgress
from xactor_platform.data.shards import Shard, encode_members
from xactor_platform.storage.location import Location

# Folder of the groups' reports, in the output.
REPORTS = "reports"
SPLITS = ("short", "long", "test")
# Maximum number of shards of one split in a group: the last two digits of a shard's number count them.
_MAX_SHARDS_PER_GROUP = 100


def assemble(
    output: str, group: int, keys: list[str], bytes_per_shard: int, clips: dict[str, KnownClip]
) -> list[str]:
    """Write each shard of a group atomically, and then the group's report. The report marks the group as finished.

    The number of a shard begins with the number of its group: `long-000302.tar` is the third shard of group 3 in the
    split `long`. At the end, the function deletes the saved progress of the group's videos. If the group already has a
    report, the function only deletes the progress.

    Args:
        output: folder or URI of the shards.
        group: number of the group.
        keys: keys of the group's videos.
        bytes_per_shard: bytes after which a shard is complete.
        clips: the decisions on the clips that passed the gates, by the clips' keys.

    Returns:
        The names of the shards that this call wrote.

    Raises:
        ValueError: the group does not fit into 100 shards of a split.
    """
    place = Location.parse(output)
    report, names = f"{group:06d}.parquet", []
    if place.filesystem.get_file_info(f"{place.path}/{REPORTS}/{report}").is_file:
        # An earlier call wrote the report. If it was interrupted while it deleted the progress, the rest of the
        # progress is incomplete, so the shards must not be written again from it.
        _delete_progress(output, keys)
        return names
    fates: list[Fate] = []
    # By split, for each kept clip: the key of its video, its own key, and its metadata (the json in the shard).
    clips_of_split: dict[str, list[tuple[str, str, dict[str, Any]]]] = {split: [] for split in SPLITS}
    for key in keys:
        video_fates, samples = VideoProgress(output, key).all_results()
        fates += [_decided(fate, clips[fate.clip]) if fate.status == "kept" else fate for fate in video_fates]
        for clip, meta in samples:
            decided = clips[clip]
            if not decided.copy_of:
                clips_of_split[decided.split].append((key, clip, {**meta, "person": decided.person}))
    for split, waiting in clips_of_split.items():
        number = 0
        while waiting:
            if number >= _MAX_SHARDS_PER_GROUP:
                raise ValueError(
                    f"a group of videos needs more than {_MAX_SHARDS_PER_GROUP} shards: raise "
                    f"bytes_per_shard (now {bytes_per_shard}) or lower videos_per_shard"
                )
            names.append(f"{split}-{group * _MAX_SHARDS_PER_GROUP + number:06d}.tar")
            _write_shard(place, output, names[-1], waiting, bytes_per_shard)
            number += 1
    write_fates(place, f"{REPORTS}/{report}", fates)
    _delete_progress(output, keys)
    return names


def _decided(fate: Fate, clip: KnownClip) -> Fate:
    """Return the fate of a clip that passed the gates, with the decision on it."""
    similar = {"own_similarity": clip.own_similarity, "other_similarity": clip.other_similarity}
    if clip.copy_of:
        return replace(fate, status="dropped", reason=DUPLICATE, detail=clip.copy_of, **similar)
    return replace(fate, person=clip.person, split=clip.split, **similar)


def _delete_progress(output: str, keys: list[str]) -> None:
    for key in keys:
        VideoProgress(output, key).delete()


def _write_shard(
    place: Location,
    output: str,
    name: str,
    waiting: list[tuple[str, str, dict[str, Any]]],
    bytes_per_shard: int,
) -> None:
    """Write clips into a shard until it is complete, and remove them from `waiting`.

    Args:
        place: folder of the shards.
        output: path or URI of the same folder.
        name: name of the shard.
        waiting: clips that are not written yet: key of the video, key of the clip, and metadata.
        bytes_per_shard: bytes after which the shard is complete.
    """
    with Shard(place, name) as shard:
        while waiting and shard.bytes < bytes_per_shard:
            key, clip, meta = waiting.pop(0)
            members = VideoProgress(output, key).members(clip)
            shard.write(clip, encode_members(clip, {**members, "json": meta}))
