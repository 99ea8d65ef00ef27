"""Append rows to a run's JSONL files, and select the rows of the last attempts."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xactor_platform.storage.retries import with_retries
from xactor_platform.training.run.folder import RunFolder


class RunLog:
    """Append to a JSONL file.

    A line that cannot be written now, for example on a full disk, is written with the next one. An object store cannot
    append, so lines for it are collected in a local file, and `flush` uploads that file.
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
        """Write all lines. Raise StorageUnavailable if that fails for the folder's `storage_timeout_s`."""
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
        # A disk that becomes full accepts only some of the bytes. The others stay for the next attempt.
        while self._waiting:
            data = self._waiting.encode()
            written = self._file.write(data) or 0
            self._waiting = data[written:].decode()


def last_attempts(rows: Iterable[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Return one row of metrics.jsonl for each of the first `steps` steps: the row of the last attempt."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["step"] > steps:
            continue
        # Compare the first row of a step with itself.
        earlier = by_step.get(row["step"], row)
        if row["attempt"] >= earlier["attempt"]:
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _end_last_line(path: Path) -> None:
    """Terminate the last line if a crash cut it short, so that the next row does not continue it."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")
