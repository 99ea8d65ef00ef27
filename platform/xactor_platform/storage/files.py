"""A row's files: where they are, and as local ones for as long as they are needed."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import NativeFile, fs

_PIECE = 1 << 20


def open_file(uri: str) -> tuple[fs.FileSystem, str, int]:
    """Its filesystem, path and size. ValueError: there is none, or it is a folder."""
    try:
        if "://" in uri:
            filesystem, path = fs.FileSystem.from_uri(uri)
        else:
            filesystem, path = fs.LocalFileSystem(), uri
        info = filesystem.get_file_info(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{uri}: cannot be opened ({error})") from error
    if info.type != fs.FileType.File:
        raise ValueError(f"{uri}: {'no such file' if info.type == fs.FileType.NotFound else 'is a folder'}")
    return filesystem, path, info.size


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """The file on this machine; fetched for the block where it is elsewhere. ValueError: see `open_file`."""
    filesystem, path, _ = open_file(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="xactor-dub-") as folder:
        copy = Path(folder, Path(path).name)
        with filesystem.open_input_stream(path) as stream, copy.open("wb") as file:
            for piece in pieces(stream):
                file.write(piece)
        yield copy


def digest_of(uri: str, most_bytes: int) -> str:
    """SHA-256 of a file's content. ValueError: it cannot be opened, or is larger than `most_bytes`."""
    filesystem, path, size = open_file(uri)
    if size > most_bytes:
        raise ValueError(f"{uri}: {size} bytes are more than {most_bytes}, the most that is taken")
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        for piece in pieces(stream):
            digest.update(piece)
    return digest.hexdigest()


def pieces(stream: NativeFile) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece
