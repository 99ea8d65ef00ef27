"""Read the speakers of a folder's videos from a user's list.

    file,speaker
    2019/interview.mp4,alice
    2020/talk 3.mp4,bob

The columns may stand in any order among others. Paths are relative to the folder of all videos.
"""

import csv
from dataclasses import replace

from xactor_platform.curation.adapters.names import missing_file, read_text
from xactor_platform.curation.messages import Fate, Video


def listed_speakers(videos: list[Video], metadata: str) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """Return the videos with their listed speakers, and the key and fate of each listed video that is missing.

    Args:
        videos: all videos of the folder.
        metadata: path or URI of the CSV file.

    Raises:
        ValueError: the file has another layout, or names two speakers for a video or none.
    """
    rows = csv.DictReader(read_text(metadata).splitlines())
    if not {"file", "speaker"} <= {*(rows.fieldnames or [])}:
        raise ValueError(f"{metadata}: needs the columns file and speaker, got {rows.fieldnames or 'none'}")
    speakers: dict[str, str] = {}
    for row in rows:
        file, speaker = (row["file"] or "").removeprefix("./"), row["speaker"]
        if not file or not speaker:
            raise ValueError(f"{metadata}: line {rows.line_num} needs a file and a speaker")
        if speakers.setdefault(file, speaker) != speaker:
            raise ValueError(f"{metadata}: {file} has two speakers: {speakers[file]} and {speaker}")
    unnamed = [video.name for video in videos if video.name not in speakers]
    if unnamed:
        raise ValueError(f"{metadata}: names no speaker of {unnamed[0]} (and {len(unnamed) - 1} more videos)")
    gone = speakers.keys() - {video.name for video in videos}
    found = [replace(video, speaker=speakers[video.name]) for video in videos]
    return found, [missing_file(name, "folder") for name in sorted(gone)]
