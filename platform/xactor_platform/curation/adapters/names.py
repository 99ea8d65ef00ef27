"""A dataset's videos among those that are there, and what is said of those that are not."""

import os
import re
from collections.abc import Iterable, Sequence

from pyarrow import fs

from xactor_platform.curation.files import key_of
from xactor_platform.curation.work import Fate, Video

# A name that a dataset's file may give a video; others, such as paths, are not looked for.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def by_stem(videos: Iterable[Video]) -> dict[str, Video]:
    """Videos by their names without folder and ending; of several the first."""
    found: dict[str, Video] = {}
    for video in videos:
        found.setdefault(os.path.splitext(os.path.basename(video.name))[0], video)
    return found


def pick(there: dict[str, Video], names: Sequence[str]) -> Video | None:
    """The first that is there."""
    return next((there[name] for name in names if _PLAIN.fullmatch(name) and name in there), None)


def missing(name: str, corpus: str) -> tuple[str, Fate]:
    """What is told of a video that is not there, or that has a name which is none; and its key."""
    shown = name[:200]
    key = key_of(f"{corpus}/{shown}")
    if not _PLAIN.fullmatch(name):
        detail = "a name must be 1 to 128 letters, digits, '-' or '_'"
        return key, Fate(video=shown, status="dropped", reason="bad_name", detail=detail, corpus=corpus)
    detail = "named by the dataset, and not in the folder"
    return key, Fate(video=shown, status="dropped", reason="missing", detail=detail, corpus=corpus)


def read_text(uri: str) -> str:
    """A file of a dataset. ValueError: it cannot be read."""
    try:
        filesystem, path = (
            fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), os.path.abspath(uri))
        )
        with filesystem.open_input_stream(path) as stream:
            return stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: cannot be read ({error})") from error
