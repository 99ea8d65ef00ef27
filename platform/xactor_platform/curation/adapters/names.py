"""Find videos by the names that datasets give them, and report the missing ones."""

import os
import re
from collections.abc import Iterable, Sequence

from pyarrow import fs

from xactor_platform.curation.messages import Fate, Video
from xactor_platform.curation.video_files import key_of

# Valid names. Other names in a dataset's file, such as paths, are never looked up.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def by_stem(videos: Iterable[Video]) -> dict[str, Video]:
    """Map each name, without folder and suffix, to its video. If several videos share a name, the first one counts."""
    found: dict[str, Video] = {}
    for video in videos:
        found.setdefault(os.path.splitext(os.path.basename(video.name))[0], video)
    return found


def pick(existing: dict[str, Video], names: Sequence[str]) -> Video | None:
    """Look up names in order. Return the video of the first name that is valid and exists, None if there is none."""
    return next((existing[name] for name in names if _PLAIN.fullmatch(name) and name in existing), None)


def missing(name: str, corpus: str) -> tuple[str, Fate]:
    """Return the key and the fate (row of the report) of a video that is missing or has an invalid name."""
    shown = name[:200]
    key = key_of(f"{corpus}/{shown}")
    if not _PLAIN.fullmatch(name):
        detail = "a name must be 1 to 128 letters, digits, '-' or '_'"
        return key, Fate(video=shown, status="dropped", reason="bad_name", detail=detail, corpus=corpus)
    return missing_file(shown, corpus)


def missing_file(name: str, corpus: str) -> tuple[str, Fate]:
    """Return the key and the fate (row of the report) of a file that a list names, but that does not exist."""
    detail = "the dataset lists it, but the folder does not contain it"
    key = key_of(f"{corpus}/{name}")
    return key, Fate(video=name, status="dropped", reason="missing", detail=detail, corpus=corpus)


def read_text(uri: str) -> str:
    """Return the text of a dataset's file. Raise ValueError if it cannot be read."""
    try:
        filesystem, path = (
            fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), os.path.abspath(uri))
        )
        # "utf-8-sig" also accepts a byte order mark at the start.
        with filesystem.open_input_stream(path) as stream:
            return stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: cannot be read ({error})") from error
