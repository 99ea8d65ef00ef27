"""Find, name and open video files in a folder or an object store."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
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
# Names of folders that hold a part of a dataset, not a speaker.
_SPLITS = {"train", "training", "dev", "val", "valid", "validation", "eval", "test"}
# Number of bytes of a file that are read at a time.
_BLOCK_BYTES = 1 << 20


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


def read_bytes(uri: str) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks.

    Raises:
        OSError: the file cannot be read.
        ValueError: a URI is invalid.
    """
    filesystem, path = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    with filesystem.open_input_stream(path) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


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
    files = _local_sizes(place.path) if place.is_local else _remote_sizes(place)
    names = sorted(name for name in files if _is_video(name))
    others = Counter(
        os.path.splitext(name)[1].lower() or "without a suffix" for name in files.keys() - set(names)
    )
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logger.warning("%s: not tried, because their suffixes are not those of videos: %s", folder, kinds)
    if not names:
        raise ValueError(f"{folder}: no videos found ({', '.join(sorted(VIDEO_SUFFIXES))})")
    videos: list[Video] = []
    refused: list[tuple[str, Fate]] = []
    below = common_folder(names)
    for name in names:
        video = video_of(folder, name, speaker=folder_speaker(name, below), size_bytes=files[name])
        if place.is_local and (why := _bad_link(place.path, name)):
            refused.append((video.key, fate_of(video, None, "failed", reason="bad_name", detail=why)))
        else:
            videos.append(video)
    return videos, refused


def common_folder(names: Iterable[str]) -> str:
    """Return the deepest folder that holds all of some files, as a path. Empty: it is the folder of all videos.

    Args:
        names: paths of the files relative to the folder of all videos.
    """
    return os.path.commonpath([os.path.dirname(name) for name in names])


def folder_speaker(name: str, below: str) -> str:
    """Return the speaker that the place of a video suggests: the first folder in which not all videos lie.

    Datasets have the layouts `person/clip` and `person/session/clip`, also below folders that are named as splits. A
    video that lies in no such folder is a speaker of its own, named by its path without suffix.

    Args:
        name: path of the video relative to the folder of all videos.
        below: deepest folder that holds all videos, see `common_folder`.
    """
    folders = os.path.dirname(name.removeprefix(f"{below}/" if below else "")).split("/")
    speaker = next((folder for folder in folders if folder.lower() not in _SPLITS), "")
    return _shown(speaker or os.path.splitext(name)[0])


def video_of(
    folder: str, name: str, *, corpus: str = "folder", speaker: str | None = None, size_bytes: int = 0
) -> Video:
    """Return the description of a video in a folder.

    Args:
        folder: folder or URI of all videos.
        name: path of the video relative to the folder.
        corpus: name of the dataset.
        speaker: name of the speaker, by default the name of the video.
        size_bytes: size of the file, 0 if it is not known.
    """
    shown = _shown(name)
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
        size_bytes=size_bytes,
    )


def _shown(name: str) -> str:
    """Return a name as reports and keys show it: characters that cannot be printed are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def key_of(name: str) -> str:
    """Return a unique key of letters, digits, '-' and '_': the file's name, for people, and a digest of the path.

    Args:
        name: path of the video relative to the folder of all videos, or another unique name.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.splitext(os.path.basename(name))[0]).strip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{stem[:_STEM_CHARS] or 'video'}-{digest}"


def _local_sizes(path: str) -> dict[str, int]:
    """Return the size of each file below a folder, by its relative path. The size of a dangling link is 0."""
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such folder")
    found: dict[str, int] = {}
    for parent, folders, files in os.walk(path):
        # Changing the list in place keeps os.walk out of hidden folders.
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in linked:
            # Following links could visit a folder twice, or for ever.
            logger.warning("%s: a link to a folder, whose videos are not tried", os.path.join(parent, name))
        for name in files:
            file = os.path.join(parent, name)
            if not name.startswith("."):
                found[os.path.relpath(file, path)] = os.path.getsize(file) if os.path.exists(file) else 0
    return found


def _remote_sizes(place: Location) -> dict[str, int]:
    """Return the size of each file below a folder, by its relative path."""
    try:
        infos = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True))
    except OSError as error:
        raise ValueError(f"{place.uri}: cannot be listed ({error})") from error
    visible = [info for info in infos if info.is_file and not info.base_name.startswith(".")]
    return {info.path[len(place.path) + 1 :]: info.size for info in visible}


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
