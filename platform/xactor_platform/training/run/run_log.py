"""Append rows to a run's JSONL files, and select the valid rows of a run that was started several times."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xactor_platform.storage.retries import with_retries
from xactor_platform.training.run.folder import METRICS, NOT_FINITE, RunFolder

# Python's text of each number that is not finite, and its name in a log.
_NAMES = {str(number): name for name, number in NOT_FINITE.items()}


class RunLog:
    """Append rows to a JSONL file in the run's folder.

    A row that cannot be written now, for example on a full disk, is kept and written together with the next row. An
    object store cannot append to a file. For a run in an object store, the rows are collected in a local file, and
    `flush` uploads this file.

    Args:
        folder: the folder of the run.
        name: name of the file in this folder.
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
        """Append a row. If the write fails, keep the row for the next write.

        JSON has neither NaN nor infinity. They become the strings of `NOT_FINITE`, as in protobuf's JSON.
        """
        names = {name: str(value) for name, value in row.items() if isinstance(value, float)}
        named = {name: _NAMES[text] for name, text in names.items() if text in _NAMES}
        self._waiting += json.dumps(row | named, allow_nan=False) + "\n"
        with contextlib.suppress(OSError):
            self._write_waiting()

    def flush(self) -> None:
        """Write all rows so far to the storage.

        Raises:
            StorageUnavailable: the storage failed at every try for the folder's `storage_timeout_s` seconds.
        """
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
        # A disk that becomes full accepts only some of the bytes. The other bytes are kept for the next try.
        while self._waiting:
            data = self._waiting.encode()
            written = self._file.write(data) or 0
            self._waiting = data[written:].decode()


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without those that are damaged."""

    def is_intact(row: dict[str, Any]) -> bool:
        counts = (row.get("step"), row.get("attempt"))
        return all(isinstance(n, int) for n in counts) and isinstance(row.get("loss"), (int, float))

    return [row for row in folder.read_lines(METRICS) if is_intact(row)]


def last_attempts(rows: Iterable[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Return one row of metrics.jsonl for each of the first `steps` steps: the row of the last attempt.

    An attempt is one start of the ranks. A step that was repeated after a restart has a row for each attempt.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["step"] > steps:
            continue
        # The first row of a step is compared with itself, so that it is stored.
        earlier = by_step.get(row["step"], row)
        if row["attempt"] >= earlier["attempt"]:
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _end_last_line(path: Path) -> None:
    """Terminate the last line if a crash cut it short, so that the next row starts on a new line."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")
