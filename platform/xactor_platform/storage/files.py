"""Open, fetch and hash single files named by a local path or a URI."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import NativeFile, fs

_BLOCK_BYTES = 1 << 20

# The reason why a path cannot be opened, by its type. Pipes, sockets and devices are of unknown type.
_FAULTS = {
    fs.FileType.NotFound: "no such file",
    fs.FileType.Directory: "is a folder",
    fs.FileType.Unknown: "is neither a file nor a folder",
}


def open_file(uri: str) -> tuple[fs.FileSystem, str, int]:
    """Return a file's filesystem, its path in that filesystem, and its size in bytes.

    Raises:
        ValueError: the file does not exist, is a folder or cannot be opened.
    """
    try:
        if "://" in uri:
            filesystem, path = fs.FileSystem.from_uri(uri)
        else:
            # pyarrow takes a relative path such as `a:b.mp4` for a URI.
            filesystem, path = fs.LocalFileSystem(), os.path.abspath(uri)
        info = filesystem.get_file_info(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{uri}: cannot be opened ({error})") from error
    if info.type != fs.FileType.File:
        raise ValueError(f"{uri}: {_FAULTS[info.type]}")
    return filesystem, path, info.size


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Give the path of a file on this machine. A remote file is downloaded, and the copy is deleted after the block.

    Raises:
        ValueError: the file does not exist, is a folder or cannot be opened.
    """
    filesystem, path, _ = open_file(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="xactor-") as folder:
        copy = Path(folder, Path(path).name)
        with filesystem.open_input_stream(path) as stream, copy.open("wb") as file:
            for block in _blocks(stream):
                file.write(block)
        yield copy


def file_digest(uri: str, max_bytes: int) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        ValueError: the file cannot be opened or is larger than `max_bytes`.
    """
    filesystem, path, size = open_file(uri)
    if size > max_bytes:
        raise ValueError(f"{uri}: has {size} bytes, at most {max_bytes} are allowed")
    sha256 = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        for block in _blocks(stream):
            sha256.update(block)
    return sha256.hexdigest()


def _blocks(stream: NativeFile) -> Iterator[bytes]:
    while block := stream.read(_BLOCK_BYTES):
        yield block
