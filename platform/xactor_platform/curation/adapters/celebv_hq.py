"""Read CelebV-HQ (Zhu et al. 2022) from its celebvhq_info.json, which lists parts of videos and their face boxes.

    {"clips": {"M2Ohb0FAaJU_1": {"ytb_id": "M2Ohb0FAaJU", "duration": {"start_sec": 81.6, "end_sec": 84.8},
                                 "bbox": {"top": 0.0, "bottom": 0.8, "left": 0.4, "right": 0.8}, ...}}}

Boxes are fractions of the picture, 0 to 1. A clip that is already cut out is found as a file with the clip's name.
Otherwise the video is found by its YouTube id.
"""

import json
import math
from dataclasses import replace
from typing import Any

from xactor_platform.curation.adapters.names import by_stem, missing, pick, read_text
from xactor_platform.curation.messages import Fate, Segment, Video


def celebv_hq(videos: list[Video], metadata: str) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """Return CelebV-HQ's videos, and the keys and fates of those that are missing.

    Args:
        videos: all videos of the folder.
        metadata: path or URI of the json file.

    Raises:
        ValueError: there is no such file, or it has another layout.
    """
    existing = by_stem(videos)
    try:
        clips: dict[str, dict[str, Any]] = json.loads(read_text(metadata))["clips"]
        wanted = [(name, str(clip["ytb_id"]), _segment(name, clip)) for name, clip in sorted(clips.items())]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{metadata}: not CelebV-HQ's celebvhq_info.json ({error!r})") from error
    found: list[Video] = []
    absent: dict[str, tuple[str, Fate]] = {}
    parts: dict[str, list[Segment]] = {}
    for name, source, segment in wanted:
        if cut_out := pick(existing, [name]):
            found.append(replace(cut_out, corpus="celebv-hq", speaker=source))
        elif pick(existing, [source]):
            parts.setdefault(source, []).append(segment)
        else:
            absent[source] = missing(source, "celebv-hq")
    for source, segments in parts.items():
        ordered = tuple(sorted(segments, key=lambda segment: segment.start_s))
        found.append(replace(existing[source], corpus="celebv-hq", speaker=source, segments=ordered))
    return found, [*absent.values()]


def _segment(name: str, clip: dict[str, Any]) -> Segment:
    """Return a clip's segment. Raise ValueError if its times or its box are invalid."""
    start, end = float(clip["duration"]["start_sec"]), float(clip["duration"]["end_sec"])
    box = tuple(float(clip["bbox"][edge]) for edge in ("left", "top", "right", "bottom"))
    if not (
        0 <= start < end and all(map(math.isfinite, (end, *box))) and box[0] < box[2] and box[1] < box[3]
    ):
        raise ValueError(
            f"{name}: needs 0 <= start_sec < end_sec and a box, got {start:g}, {end:g} and {box}"
        )
    left, top, right, bottom = box
    return Segment(start_s=start, end_s=end, box=(left, top, right, bottom))
