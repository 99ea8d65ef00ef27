"""Read CelebV-HQ (Zhu et al. 2022) from its celebvhq_info.json, which lists parts of videos and their face boxes.

    {"clips": {"M2Ohb0FAaJU_1": {"ytb_id": "M2Ohb0FAaJU", "duration": {"start_sec": 81.6, "end_sec": 84.8},
                                 "bbox": {"top": 0.0, "bottom": 0.8, "left": 0.4, "right": 0.8}, ...}}}

Boxes are fractions of the picture, 0 to 1. A file with the name of a clip (`M2Ohb0FAaJU_1`) is taken as that clip,
already cut out of its video. Without such a file, the clip is a segment of the file with its video's YouTube id
(`ytb_id`) as name.
"""

import json
import math
from dataclasses import replace
from typing import Any

from xactor_platform.curation.adapters.names import by_stem, missing, pick, read_text
from xactor_platform.curation.messages import Fate, Segment, Video


def celebv_hq(videos: list[Video], metadata: str) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """Return the videos that belong to CelebV-HQ, and the key and fate of each video that is missing.

    A fate is a row of the report: it tells why the video gives no clips.

    Args:
        videos: all videos of the folder.
        metadata: path or URI of celebvhq_info.json.

    Raises:
        ValueError: the json file does not exist or has another layout.
    """
    existing = by_stem(videos)
    try:
        clips: dict[str, dict[str, Any]] = json.loads(read_text(metadata))["clips"]
        wanted = [(name, str(clip["ytb_id"]), _segment(name, clip)) for name, clip in sorted(clips.items())]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{metadata}: not CelebV-HQ's celebvhq_info.json ({error!r})") from error
    found: list[Video] = []
    # By YouTube id, because several clips may miss the same video, which is reported once.
    absent: dict[str, tuple[str, Fate]] = {}
    # Segments of each video that is not cut yet, by YouTube id.
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
    """Return the segment of the video that a clip covers. Raise ValueError if the clip's times or box are invalid."""
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
