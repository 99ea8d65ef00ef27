"""A folder named by a URI: local, s3://, gs:// or file://, through pyarrow's filesystems."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

from pyarrow import NativeFile, fs


@dataclass(frozen=True)
class Location:
    """A folder, and what the platform does in it.

    `uri` is what the user wrote and what errors name; query options such as `?region=...` stay in the
    filesystem and are not part of `path`.
    """

    uri: str
    filesystem: fs.FileSystem
    path: str

    @staticmethod
    def parse(uri: str) -> "Location":
        """The location of a URI or of a plain local path. ValueError for an unknown scheme."""
        return _parse(os.fspath(uri))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of the files directly in the folder, sorted by name.

        FileNotFoundError where there is no such folder, NotADirectoryError where it is a file.
        """
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.File:
            raise NotADirectoryError(f"{self.uri} is a file, not a folder")
        found = self.entries()
        if not found and kind == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.uri}: no such folder")
        return {i.base_name: i.size for i in sorted(found, key=lambda i: i.base_name) if i.is_file}

    def entries(self, folder: str = "") -> list[fs.FileInfo]:
        """What lies directly in this folder, or in one of its own; nothing where there is none.

        That a store has nothing is believed when it says so twice: an answer that is cut within its headers reads as
        an empty one.
        """
        path = f"{self.path}/{folder}" if folder else self.path
        selector = fs.FileSelector(path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return found if found or self.is_local else self.filesystem.get_file_info(selector)

    def open(self, name: str) -> NativeFile:
        """A file for ranged reads (`read_at`), safe to share between threads."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")

    @contextmanager
    def replace(self, name: str) -> Iterator[NativeFile]:
        """A stream that becomes the file when the block ends, and nothing at all when it raises.

        The name may have folders in front, which are made.

        Closing an object store's stream completes its upload whatever happened before, so the bytes go
        under a name that no reader takes and are moved at the end.
        """
        self.filesystem.create_dir(os.path.dirname(f"{self.path}/{name}"), recursive=True)
        part = f"{self.path}/{name}.{uuid.uuid4().hex[:8]}.part"
        try:
            with self.filesystem.open_output_stream(part) as stream:
                yield stream
            self.filesystem.move(part, f"{self.path}/{name}")
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(part)
            raise


def check_output(uri: str) -> None:
    """ValueError: nothing can be written there."""
    place = Location.parse(uri)
    name = f".{uuid.uuid4().hex}"
    try:
        with place.replace(name) as file:
            file.write(b"")
        place.delete(name)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be written to ({error})") from error


def beside(uri: str, name: str) -> str:
    """The path or URI of a folder in the same parent. ValueError for a bucket, which has none."""
    if "://" not in uri:
        return os.path.join(os.path.dirname(os.path.abspath(os.path.expanduser(uri))), name)
    place, mark, query = uri.partition("?")
    scheme, path = place.split("://", 1)
    parent, slash, _ = path.rstrip("/").rpartition("/")
    if not slash:
        raise ValueError(f"{uri}: must be a folder inside the bucket")
    return f"{scheme}://{parent}/{name}{mark}{query}"


def inside(uri: str, name: str) -> str:
    """The path or URI of what lies in a folder, its query options kept."""
    place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


@lru_cache(maxsize=64)
def _parse(uri: str) -> Location:
    if "://" not in uri:
        return Location(uri, fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise ValueError(f"{uri}: not a location that can be opened: {error}") from error
    return Location(uri, filesystem, path.rstrip("/") or "/")
