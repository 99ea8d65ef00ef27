"""Find, name and open video files in a folder or an object store."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from pyarrow import fs

from xactor.media.container import VIDEO_SUFFIXES, Source
from xactor_platform.curation.messages import Fate, Video, fate_of
from xactor_platform.storage.location import Location

logger = logging.getLogger(__name__)

# Maximum length of the part of a key that repeats the file's name, and length of the digest after it.
_STEM_CHARS, _DIGEST_CHARS = 48, 10


@contextmanager
def open_video(uri: str) -> Iterator[Source]:
    """Yield the path of a local video or, for a URI, an open file, whose content is fetched only as it is read.

    Raises:
        ValueError: the file of a URI cannot be opened.
    """
    if "://" not in uri:
        yield Path(uri)
        return
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        file = filesystem.open_input_file(path)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be opened ({error})") from error
    with file:
        yield file


def size_of(uri: str) -> int:
    """Return a file's size in bytes. Raise ValueError if there is no such file."""
    try:
        local = (fs.LocalFileSystem(), os.path.abspath(uri))
        filesystem, path = fs.FileSystem.from_uri(uri) if "://" in uri else local
        info = filesystem.get_file_info(path)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot be opened ({error})") from error
    if info.type != fs.FileType.File:
        raise ValueError("no such file")
    return info.size


def list_videos(folder: str) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """Return the videos of a folder and its subfolders in order of name, and the key and fate of each refused video.

    A fate is a row of the report: it tells why the video gives no clips.

    Raises:
        ValueError: there is no such folder, or no video in it.
    """
    place = Location.parse(folder)
    files = _local_names(place.path) if place.is_local else _remote_names(place)
    names = sorted(name for name in files if _is_video(name))
    others = Counter(
        os.path.splitext(name)[1].lower() or "without a suffix" for name in set(files) - set(names)
    )
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logger.warning("%s: not tried, because their suffixes are not those of videos: %s", folder, kinds)
    if not names:
        raise ValueError(f"{folder}: no videos found ({', '.join(sorted(VIDEO_SUFFIXES))})")
    videos: list[Video] = []
    refused: list[tuple[str, Fate]] = []
    for name in names:
        video = video_of(folder, name)
        if place.is_local and (why := _bad_link(place.path, name)):
            refused.append((video.key, fate_of(video, None, "failed", reason="bad_name", detail=why)))
        else:
            videos.append(video)
    return videos, refused


def video_of(folder: str, name: str, *, corpus: str = "folder", speaker: str | None = None) -> Video:
    """Return the description of a video in a folder.

    Args:
        folder: folder or URI of all videos.
        name: path of the video relative to the folder.
        corpus: name of the dataset.
        speaker: name of the speaker, by default the name of the video.
    """
    # In reports and keys, characters that cannot be printed, such as control characters, are escaped.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    if "://" in folder:
        # Options of the storage, such as a region, may follow the folder's path after a question mark.
        base, mark, query = folder.partition("?")
        uri = f"{base.rstrip('/')}/{quote(name)}{mark}{query}"
    else:
        uri = os.path.abspath(os.path.join(folder, name))
    return Video(
        key=key_of(shown),
        name=shown,
        uri=uri,
        corpus=corpus,
        speaker=speaker or os.path.splitext(shown)[0],
    )


def key_of(name: str) -> str:
    """Return a unique key of letters, digits, '-' and '_': the file's name, for people, and a digest of the path.

    Args:
        name: path of the video relative to the folder of all videos, or another unique name.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.splitext(os.path.basename(name))[0]).strip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{stem[:_STEM_CHARS] or 'video'}-{digest}"


def _local_names(path: str) -> list[str]:
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such folder")
    found = []
    for parent, folders, files in os.walk(path):
        # Changing the list in place keeps os.walk out of hidden folders.
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in linked:
            # Following links could visit a folder twice, or for ever.
            logger.warning("%s: a link to a folder, whose videos are not tried", os.path.join(parent, name))
        visible = [name for name in files if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(parent, name), path) for name in visible]
    return found


def _remote_names(place: Location) -> list[str]:
    try:
        infos = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True))
    except OSError as error:
        raise ValueError(f"{place.uri}: cannot be listed ({error})") from error
    visible = [info for info in infos if info.is_file and not info.base_name.startswith(".")]
    return [info.path[len(place.path) + 1 :] for info in visible]


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _bad_link(folder: str, name: str) -> str:
    """Return the reason for refusing a file: it is a link out of the folder, or no regular file. Empty if accepted."""
    path = Path(folder, name)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link to no file"
    if path.is_symlink() and not target.is_relative_to(Path(folder).resolve()):
        return "a link out of the folder"
    return "" if target.is_file() else "no regular file"
