"""A group of finished videos to shards: whole or absent, and with their report the group is done."""

import logging

from xactor_platform.curation.account import write_fates
from xactor_platform.curation.parts import Parts
from xactor_platform.data.shards import Shard, encode_members
from xactor_platform.storage.location import Location

REPORTS = "reports"
SPLITS = ("short", "long", "test")
_SHARDS_PER_GROUP = 100
logger = logging.getLogger(__name__)


def assemble(output: str, group: int, keys: list[str], bytes_per_shard: int) -> list[str]:
    """Writes the shards of a group of videos, then its report; what they were made from is forgotten.

    A group's shards are those whose number begins with its own: `long-000302.tar` is the third of group 3.

    Raises:
        ValueError: a group that does not fit into a hundred shards.
    """
    place = Location.parse(output)
    fates, clips = [], []
    for key in keys:
        some, samples = Parts(output, key).all()
        fates += some
        clips += [(key, clip, meta, next(f.split for f in some if f.clip == clip)) for clip, meta in samples]
    names = []
    for split in SPLITS:
        waiting = [(key, clip, meta) for key, clip, meta, own in clips if own == split]
        number = 0
        while waiting:
            if number >= _SHARDS_PER_GROUP:
                raise ValueError(f"bytes_per_shard is too small for videos_per_shard: {bytes_per_shard}")
            names.append(f"{split}-{group * _SHARDS_PER_GROUP + number:06d}.tar")
            with Shard(place, names[-1]) as shard:
                while waiting and shard.bytes < bytes_per_shard:
                    key, clip, meta = waiting.pop(0)
                    shard.write(
                        clip, encode_members(clip, {"mp4": Parts(output, key).mp4(clip), "json": meta})
                    )
            number += 1
    write_fates(place, f"{REPORTS}/{group:06d}.parquet", fates)
    for key in keys:
        Parts(output, key).forget()
    return names
