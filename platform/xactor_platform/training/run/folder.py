"""Read and write a run's folder, `<storage>/<name>/`.

The folder holds config.json, metrics.jsonl, samples.jsonl, bad_samples.jsonl, the checkpoints, sheets/ and export/.
"""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from pyarrow import fs
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from xactor_platform.storage.location import Location, child_uri
from xactor_platform.storage.retries import STORAGE_TIMEOUT_S, with_retries
from xactor_platform.training.train_config import RunConfig

CONFIG = "config.json"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Numbers that JSON cannot write, by their names in the logs."""
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
BAD = "bad_samples.jsonl"
EXPORT = "export"
SHEETS = "sheets"

# A JSON file that does not parse is read up to five times, because the connection may have been cut.
_READS = 5
# Seconds between two of these reads.
_READ_AGAIN_S = 0.2

Result = TypeVar("Result")


class RunFolder:
    """Read and write the files of one run, on any of pyarrow's filesystems.

    An operation that fails is retried for `storage_timeout_s` seconds. Then StorageUnavailable is raised.

    Args:
        storage: path or URI of the folder that holds the runs.
        name: name of the run's folder.
        storage_timeout_s: seconds for which a failing operation is retried.
    """

    def __init__(self, storage: str, name: str, storage_timeout_s: float = STORAGE_TIMEOUT_S):
        self.storage = Location.parse(storage)
        self.location = Location.parse(child_uri(storage, name))
        self.storage_timeout_s = storage_timeout_s

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Return the folder of the run that a config names."""
        return cls(config.storage, config.name, config.storage_timeout_s)

    @property
    def uri(self) -> str:
        """Return the folder's path or URI for messages, without the query options of a URI."""
        return self.location.path if self.location.is_local else self.location.uri.partition("?")[0]

    def uri_of(self, name: str) -> str:
        """Return the path or URI that opens a file or folder in this folder, with the query options of a URI."""
        return child_uri(self.location.path if self.location.is_local else self.location.uri, name)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file, completely or not at all. The name may contain folders."""

        def write() -> None:
            with self.location.atomic_write(name) as stream:
                stream.write(data)

        self._with_retries(write, name)

    def read_text(self, name: str, storage_timeout_s: float | None = None) -> str | None:
        """Return a file's text, or None if there is no such file.

        Args:
            name: name of the file in this folder.
            storage_timeout_s: seconds to retry, if they differ from those of the folder. With 0 there is one try.

        Raises:
            ValueError: the file is not UTF-8.
        """
        data = self._read(name, storage_timeout_s)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.uri}/{name}: not UTF-8 ({error})") from error

    def _read(self, name: str, storage_timeout_s: float | None = None) -> bytes | None:
        """Return a file's content, or None if there is no such file. See `read_text`."""
        path = f"{self.location.path}/{name}"

        def read() -> bytes | None:
            found = self.location.filesystem.get_file_info(path)
            if found.type == fs.FileType.NotFound:
                return None
            with self.location.open(name) as file:
                data = file.read()
            # If an object store's response is cut within its headers, it may lack the file's length. Such a response
            # reads as an empty file.
            if not self.location.is_local and len(data) != found.size:
                raise OSError(f"read {len(data)} of {found.size} bytes")
            return data

        return self._with_retries(read, name, storage_timeout_s)

    def read_json(self, name: str) -> Any:
        """Return a JSON file's content, or None if there is no such file.

        A file that does not parse is read again, a few times.

        Raises:
            ValueError: the file does not parse at any of the reads.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(ValueError),
            wait=wait_fixed(_READ_AGAIN_S),
            stop=stop_after_attempt(_READS),
            reraise=True,
        )
        return retrying(self._read_json, name)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSONL file, without lines that are damaged, as a crash leaves them.

        Names in NOT_FINITE become numbers.
        """
        rows = []
        for line in (self._read(name) or b"").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(row, dict):
                continue
            rows.append(
                {
                    name: NOT_FINITE.get(value, value) if isinstance(value, str) else value
                    for name, value in row.items()
                }
            )
        return rows

    def upload_folder(self, source: str | Path, name: str) -> None:
        """Copy a local folder to the subfolder `name`, in place of an older copy. See `Location.upload_folder`."""
        self._with_retries(lambda: self.location.upload_folder(source, name), name)

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.location.delete(name)

        self._with_retries(delete, name)

    def _read_json(self, name: str) -> Any:
        text = self.read_text(name)
        try:
            return None if text is None else json.loads(text)
        # RecursionError: the JSON is nested too deeply.
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.uri}/{name}: not JSON ({error})") from error

    def _with_retries(
        self, work: Callable[[], Result], name: str, storage_timeout_s: float | None = None
    ) -> Result:
        seconds = self.storage_timeout_s if storage_timeout_s is None else storage_timeout_s
        return with_retries(work, f"{self.uri}/{name}", seconds)


def saved_config(folder: RunFolder) -> dict[str, Any] | None:
    """Return the content of config.json that an earlier start of this run wrote, or None for a new run.

    Raises:
        ValueError: the file is damaged.
    """
    saved = folder.read_json(CONFIG)
    sections = saved.get("config") if isinstance(saved, dict) else None
    intact = isinstance(sections, dict) and all(isinstance(options, dict) for options in sections.values())
    if saved is not None and not intact:
        raise ValueError(
            f"{folder.uri}/{CONFIG}: not the config of a run: restore it, or use another --run.name"
        )
    return saved
