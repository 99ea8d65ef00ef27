"""Read HDTF (Zhang et al. 2021) from the text files of github.com/MRzzm/HDTF. Each video shows one speaker.

    RD_annotion_time.txt   Radio11.mp4 00:30-01:00 01:30-02:30    video: time of each clip (HDTF spells "annotion")
    RD_crop_wh.txt         Radio11_0.mp4 412 599 0 599            clip: left, width, top and height of the face, px
    RD_resolution.txt      Radio11.mp4 720                        video: height of the pictures in those pixels

The subsets are RD, WDA and WRA. The file of a video is named `RD_Radio11`, `Radio11` or with the video's YouTube id.
Without such a file, the video may be cut already: the files of its clips are named `RD_Radio11_0` or `Radio11_0`.
"""

import re
from dataclasses import replace

from xactor_platform.curation.adapters.names import by_stem, missing, pick, read_text
from xactor_platform.curation.messages import Fate, Segment, Video

SUBSETS = ("RD", "WDA", "WRA")
# Width of a picture relative to its height. Ours: an assumption, because the text files state only the height.
_ASPECT = 16 / 9


def hdtf(videos: list[Video], metadata: str) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """Return the videos that belong to HDTF, and the key and fate of each video that is missing.

    A fate is a row of the report: it tells why the video gives no clips.

    Args:
        videos: all videos of the folder.
        metadata: folder or URI of the text files.

    Raises:
        ValueError: no subset has a file with times, or a time is invalid.
    """
    existing = by_stem(videos)
    found: list[Video] = []
    absent: list[tuple[str, Fate]] = []
    folder = metadata.rstrip("/")
    tables = {subset: _optional(f"{folder}/{subset}_annotion_time.txt") for subset in SUBSETS}
    if not any(tables.values()):
        raise ValueError(f"{metadata}: holds none of {', '.join(f'{s}_annotion_time.txt' for s in SUBSETS)}")
    for subset, times in tables.items():
        crops, heights, urls = (
            _optional(f"{folder}/{subset}_{table}.txt") for table in ("crop_wh", "resolution", "video_url")
        )
        for name, spans in times.items():
            height = heights.get(name, [])
            segments = tuple(
                _segment(name, span, crops.get(f"{name}_{n}", []), height) for n, span in enumerate(spans)
            )
            # The first group is the YouTube id, which has 11 characters.
            link = re.search(r"(?:v=|youtu\.be/)([A-Za-z0-9_-]{11})", " ".join(urls.get(name, [])))
            origin = {"corpus": "hdtf", "speaker": f"{subset}_{name}"}
            whole = pick(existing, [f"{subset}_{name}", name, *([link[1]] if link else [])])
            if whole:
                found.append(replace(whole, segments=segments, **origin))
                continue
            cut = [pick(existing, [f"{subset}_{name}_{n}", f"{name}_{n}"]) for n in range(len(segments))]
            found += [replace(clip, **origin) for clip in cut if clip]
            if not any(cut):
                absent.append(missing(f"{subset}_{name}", "hdtf"))
    return found, absent


def _segment(name: str, span: str, crop: list[str], height: list[str]) -> Segment:
    """Return a segment of a video, with the box of the face if the text files state it.

    Args:
        name: name of the video, for error messages.
        span: start and end, such as 00:30-01:00.
        crop: left, width, top and height of the face in pixels. Other than four whole numbers: not known.
        height: height of the video's pictures in the same pixels. Other than one whole number: not known.

    Raises:
        ValueError: the time is invalid.
    """
    try:
        start, end = (_seconds(time) for time in span.split("-"))
        if not start < end:
            raise ValueError("it must end after it begins")
    except ValueError as error:
        raise ValueError(f"{name}: {span!r} is no time such as 00:30-01:00 ({error})") from error
    if len(crop) != 4 or len(height) != 1 or not all(word.isdecimal() for word in (*crop, *height)):
        return Segment(start_s=start, end_s=end)
    left, crop_width, top, crop_height = map(int, crop)
    picture_height = int(height[0])
    if not picture_height:
        raise ValueError(f"{name}: the height in RD_resolution.txt must be >= 1, got 0")
    picture_width = picture_height * _ASPECT
    box = (
        left / picture_width,
        top / picture_height,
        (left + crop_width) / picture_width,
        (top + crop_height) / picture_height,
    )
    return Segment(start_s=start, end_s=end, box=box)


def _seconds(text: str) -> float:
    """Convert a time such as 00:30 or 1:02:03 to seconds."""
    total = 0.0
    for number in text.split(":"):
        total = 60 * total + float(number)
    return total


def _optional(uri: str) -> dict[str, list[str]]:
    """Read one of HDTF's text files. Map the first word of each line, without ".mp4", to the line's other words.

    The result is empty if the file cannot be read, because not every subset has every file.
    """
    try:
        rows = (line.split() for line in read_text(uri).splitlines())
    except ValueError:
        return {}
    return {row[0].removesuffix(".mp4"): row[1:] for row in rows if row}
