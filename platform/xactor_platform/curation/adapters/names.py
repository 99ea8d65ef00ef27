"""Find videos by the names that datasets use, and report those that are missing."""

import os
import re
from collections.abc import Iterable, Sequence

from pyarrow import fs

from xactor_platform.curation.messages import Fate, Video
from xactor_platform.curation.video_files import key_of

# Names under which a video is looked up. Other names in a dataset's file, such as paths, are refused.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def by_stem(videos: Iterable[Video]) -> dict[str, Video]:
    """Return videos by their names without folder and suffix. The first video of each name counts."""
    found: dict[str, Video] = {}
    for video in videos:
        found.setdefault(os.path.splitext(os.path.basename(video.name))[0], video)
    return found


def pick(existing: dict[str, Video], names: Sequence[str]) -> Video | None:
    """Return the first video that exists under one of the names."""
    return next((existing[name] for name in names if _PLAIN.fullmatch(name) and name in existing), None)


def missing(name: str, corpus: str) -> tuple[str, Fate]:
    """Return the key and fate of a video that is missing, or whose name is invalid."""
    shown = name[:200]
    key = key_of(f"{corpus}/{shown}")
    if not _PLAIN.fullmatch(name):
        detail = "a name must be 1 to 128 letters, digits, '-' or '_'"
        return key, Fate(video=shown, status="dropped", reason="bad_name", detail=detail, corpus=corpus)
    detail = "the dataset lists it, but the folder does not contain it"
    return key, Fate(video=shown, status="dropped", reason="missing", detail=detail, corpus=corpus)


def read_text(uri: str) -> str:
    """Return the text of a dataset's file. Raise ValueError if it cannot be read."""
    try:
        filesystem, path = (
            fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), os.path.abspath(uri))
        )
        with filesystem.open_input_stream(path) as stream:
            return stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: cannot be read ({error})") from error
