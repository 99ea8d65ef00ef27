"""A run's folder, `<storage>/<name>/`: config.json, metrics.jsonl, samples.jsonl, checkpoints, sheets/, export/."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from xactor_platform.storage.location import Location, child_uri
from xactor_platform.storage.retries import STORAGE_TIMEOUT_S, with_retries

CONFIG, METRICS, SAMPLES, BAD, EXPORT, SHEETS = (
    "config.json",
    "metrics.jsonl",
    "samples.jsonl",
    "bad_samples.jsonl",
    "export",
    "sheets",
)
_READINGS, _READ_AGAIN_S = 5, 0.2  # of a document that cannot be made out

Result = TypeVar("Result")


class RunFolder:
    """Reads and writes the files of one run, on any filesystem of pyarrow's.

    An operation that fails is retried for `storage_timeout_s` seconds, then StorageUnavailable is raised.
    """

    def __init__(self, storage: str, name: str, storage_timeout_s: float = STORAGE_TIMEOUT_S):
        self.storage = Location.parse(storage)
        self.location = Location.parse(child_uri(storage, name))
        self.storage_timeout_s = storage_timeout_s

    @property
    def uri(self) -> str:
        """As messages name it: without the options of a storage's URI."""
        return self.location.path if self.location.is_local else self.location.uri.partition("?")[0]

    def uri_of(self, name: str) -> str:
        """Of something in it, to be opened."""
        return child_uri(self.location.path if self.location.is_local else self.location.uri, name)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole or not at all. The name may have folders in front."""

        def write() -> None:
            with self.location.atomic_write(name) as stream:
                stream.write(data)

        self._with_retries(write, name)

    def read_text(self, name: str, storage_timeout_s: float | None = None) -> str | None:
        """None where there is no such file."""
        path = f"{self.location.path}/{name}"

        def read() -> str | None:
            found = self.location.filesystem.get_file_info(path)
            if found.type == fs.FileType.NotFound:
                return None
            with self.location.open(name) as file:
                data = file.read()
            # A store's answer that is cut within its headers may name no length, and reads as an empty file.
            if not self.location.is_local and len(data) != found.size:
                raise OSError(f"{len(data)} bytes came of {found.size}")
            return data.decode()

        return self._with_retries(read, name, storage_timeout_s)

    def read_json(self, name: str) -> Any:
        """None where there is no such file. What came over a connection that was cut is read again.

        Raises:
            ValueError: it stays unreadable.
        """
        tries = Retrying(
            retry=retry_if_exception_type(ValueError),
            wait=wait_fixed(_READ_AGAIN_S),
            stop=stop_after_attempt(_READINGS),
            reraise=True,
        )
        return tries(self._read_json, name)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """A JSONL file's rows; a line cut short by a crash is left out."""
        rows = []
        for line in (self.read_text(name) or "").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def upload_folder(self, source: str | Path, name: str) -> None:
        """Copy a local folder into the run's: complete, or the old one stays. See `Location.upload_folder`."""
        self._with_retries(lambda: self.location.upload_folder(source, name), name)

    def delete(self, name: str) -> None:
        """Where there is such a file."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.location.delete(name)

        self._with_retries(delete, name)

    def _read_json(self, name: str) -> Any:
        text = self.read_text(name)
        return None if text is None else json.loads(text)

    def _with_retries(
        self, work: Callable[[], Result], name: str, storage_timeout_s: float | None = None
    ) -> Result:
        seconds = self.storage_timeout_s if storage_timeout_s is None else storage_timeout_s
        return with_retries(work, f"{self.uri}/{name}", seconds)


class RunLog:
    """A JSONL file that grows a line at a time.

    A line that cannot be written now, on a full disk say, waits for the next one. An object store cannot append: there,
    lines gather in a local file that `flush` uploads whole.
    """

    def __init__(self, folder: RunFolder, name: str):
        self._folder, self._name = folder, name
        self._waiting = ""
        if folder.location.is_local:
            self._path = Path(folder.location.path) / name
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self._path)
        else:
            self._path = Path(tempfile.mkdtemp(prefix="xactor-log-")) / name
            self._path.write_text(folder.read_text(name) or "")
        self._file = self._path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        self._waiting += json.dumps(row) + "\n"
        with contextlib.suppress(OSError):
            self._write_waiting()

    def flush(self) -> None:
        """StorageUnavailable where the lines could not be written within the folder's `storage_timeout_s`."""
        with_retries(self._write_waiting, f"{self._folder.uri}/{self._name}", self._folder.storage_timeout_s)
        if not self._folder.location.is_local:
            self._folder.write_text(self._name, self._path.read_text())

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()
            if not self._folder.location.is_local:
                shutil.rmtree(self._path.parent, ignore_errors=True)

    def _write_waiting(self) -> None:
        while self._waiting:  # a disk that fills takes a part
            data = self._waiting.encode()
            written = self._file.write(data) or 0
            self._waiting = data[written:].decode()


def _end_last_line(path: Path) -> None:
    """A crash may have cut the last line short: the next must not continue it."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")
