"""Read and write folders named by a URI (local path, s3://, gs://, file://) through pyarrow's filesystems."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pyarrow import NativeFile, fs

from xactor.atomic_path import atomic_path


@dataclass(frozen=True)
class Location:
    """Represent a folder on one of pyarrow's filesystems."""

    uri: str
    """The URI or path that the user gave. Error messages name it."""
    filesystem: fs.FileSystem
    """The filesystem of the URI, configured by the URI's query options, such as `?region=...`."""
    path: str
    """The folder's path within `filesystem`, without query options."""

    @staticmethod
    def parse(uri: str) -> "Location":
        """Return the location of a URI or of a plain local path. Raise ValueError for an unknown scheme."""
        uri = os.fspath(uri)
        if "://" in uri:
            return _parse(uri)
        # Not cached, because a relative path depends on the current folder.
        return Location(uri, fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))

    @property
    def is_local(self) -> bool:
        """Return whether the folder is on this machine's filesystem."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def sizes(self) -> dict[str, int]:
        """Return the names and sizes in bytes of the files directly in the folder, sorted by name.

        Raises:
            FileNotFoundError: the folder does not exist.
            NotADirectoryError: the location is a file.
        """
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.File:
            raise NotADirectoryError(f"{self.uri} is a file, not a folder")
        found = self.entries()
        if not found and kind == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.uri}: no such folder")
        return {
            file.base_name: file.size
            for file in sorted(found, key=lambda file: file.base_name)
            if file.is_file
        }

    def entries(self, folder: str = "") -> list[fs.FileInfo]:
        """Return the files and folders directly in this folder or in a subfolder of it; none if it does not exist."""
        path = f"{self.path}/{folder}" if folder else self.path
        selector = fs.FileSelector(path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        # An object store's response that is cut within its headers reads as an empty listing, so ask again.
        return found if found or self.is_local else self.filesystem.get_file_info(selector)

    def open(self, name: str) -> NativeFile:
        """Open a file for ranged reads (`read_at`). Threads may share it."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def delete(self, name: str) -> None:
        """Delete a file. Raise FileNotFoundError if it does not exist."""
        self.filesystem.delete_file(f"{self.path}/{name}")

    @contextmanager
    def atomic_write(self, name: str) -> Iterator[NativeFile]:
        """Give a stream to write a file. The file appears when the `with` block ends, but not if the block raises.

        Args:
            name: the file's name. It may start with folders, which are created.
        """
        target = f"{self.path}/{name}"
        self.filesystem.create_dir(os.path.dirname(target), recursive=True)
        if self.is_local:
            with atomic_path(target) as partial, self.filesystem.open_output_stream(str(partial)) as stream:
                yield stream
            return
        # Closing the stream of an object store completes the upload even after an error. So the bytes go to a name that
        # no reader looks for, and the file is renamed at the end.
        partial = f"{target}.{uuid.uuid4().hex[:8]}.partial"
        try:
            with self.filesystem.open_output_stream(partial) as stream:
                yield stream
            self.filesystem.move(partial, target)
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(partial)
            raise

    def upload_folder(self, source: str | Path, name: str) -> None:
        """Copy a local folder to the subfolder `name`, and replace an earlier folder of that name.

        On a local filesystem the earlier folder stays until the new one is complete. An object store cannot rename
        folders. Therefore the earlier folder is deleted first, so that files of the two folders are never mixed.

        No two processes may upload to the same name at the same time.
        """
        target, source = f"{self.path}/{name}", os.path.abspath(source)
        filesystems = {"source_filesystem": fs.LocalFileSystem(), "destination_filesystem": self.filesystem}
        if not self.is_local:
            self._delete_folder(target)
            fs.copy_files(source, target, **filesystems)
            return
        # Delete partial copies that killed processes have left.
        for leftover in Path(self.path).glob(f".{name}.*.partial"):
            shutil.rmtree(leftover)
        with atomic_path(target) as partial:
            partial.mkdir(parents=True)
            fs.copy_files(source, str(partial), **filesystems)
            # Delete the earlier folder, because the rename at the end of the block does not replace a folder.
            self._delete_folder(target)

    def _delete_folder(self, path: str) -> None:
        if self.filesystem.get_file_info(path).type != fs.FileType.NotFound:
            self.filesystem.delete_dir(path)


def check_output(uri: str) -> None:
    """Raise ValueError if no file can be written to the folder."""
    place = Location.parse(uri)
    name = f".{uuid.uuid4().hex}"
    try:
        with place.atomic_write(name) as file:
            file.write(b"")
        place.delete(name)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be written to ({error})") from error


def absolute(uri: str) -> str:
    """Return a local path as an absolute path with `~` expanded. Return a URI unchanged."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def sibling_uri(uri: str, name: str) -> str:
    """Return the path or URI of `name` in the parent folder of `uri`. Raise ValueError if `uri` is a bucket."""
    if "://" not in uri:
        return os.path.join(os.path.dirname(os.path.abspath(os.path.expanduser(uri))), name)
    place, mark, query = uri.partition("?")
    scheme, path = place.split("://", 1)
    parent, slash, _ = path.rstrip("/").rpartition("/")
    if not slash:
        raise ValueError(f"{uri}: must be a folder inside the bucket")
    return f"{scheme}://{parent}/{name}{mark}{query}"


def child_uri(uri: str, name: str) -> str:
    """Return the path or URI of `name` in the folder `uri`, with the query options of `uri`."""
    # In a local path, `?` is an ordinary character.
    if "://" not in uri:
        return f"{uri.rstrip('/')}/{name}"
    place, mark, query = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def local_copy(folder: str | Path) -> AbstractContextManager[str | Path]:
    """Return a context manager that gives a folder's path on this machine. A folder at a URI is downloaded first."""
    if "://" not in str(folder):
        return nullcontext(folder)
    place = Location.parse(str(folder))
    scratch = tempfile.TemporaryDirectory()
    fs.copy_files(place.path, scratch.name, source_filesystem=place.filesystem)
    return scratch


@lru_cache(maxsize=64)
def _parse(uri: str) -> Location:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise ValueError(f"{uri}: not a location that can be opened: {error}") from error
    return Location(uri, filesystem, path.rstrip("/") or "/")
