"""A run's folder, `<storage>/<name>/`: config.json, metrics.jsonl, samples.jsonl, checkpoints, sheets/, export/."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pyarrow import fs

from xactor_platform.location import Location

CONFIG, METRICS, SAMPLES, BAD, EXPORT, SHEETS = (
    "config.json",
    "metrics.jsonl",
    "samples.jsonl",
    "bad_samples.jsonl",
    "export",
    "sheets",
)


class RunFolder:
    """Reads and writes the files of one run, on any filesystem of pyarrow's."""

    def __init__(self, storage: str, name: str):
        self.storage = Location.parse(storage)
        self.location = Location.parse(f"{storage.rstrip('/')}/{name}")

    @property
    def uri(self) -> str:
        return self.location.uri if not self.location.is_local else self.location.path

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole or not at all. The name may have folders in front."""
        with self.location.replace(name) as stream:
            stream.write(data)

    def read_text(self, name: str) -> str | None:
        """None where there is no such file."""
        path = f"{self.location.path}/{name}"
        if self.location.filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return None
        with self.location.open(name) as file:
            return file.read().decode()

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
        """A local folder into the run's: complete, or the old one stays."""
        target, part = f"{self.location.path}/{name}", f"{self.location.path}/.{name}.part"
        filesystem = self.location.filesystem
        self._delete(part)
        fs.copy_files(str(source), part, destination_filesystem=filesystem)
        self._delete(target)
        filesystem.move(part, target)

    def _delete(self, path: str) -> None:
        if self.location.filesystem.get_file_info(path).type != fs.FileType.NotFound:
            self.location.filesystem.delete_dir(path)


class RunLog:
    """A JSONL file that grows a line at a time.

    An object store cannot append: there, lines gather in a local file that `flush` uploads whole.
    """

    def __init__(self, folder: RunFolder, name: str):
        self._folder, self._name = folder, name
        if folder.location.is_local:
            self._path = Path(folder.location.path) / name
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self._path)
        else:
            self._path = Path(tempfile.mkdtemp(prefix="xactor-log-")) / name
            self._path.write_text(folder.read_text(name) or "")
        self._file = self._path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def flush(self) -> None:
        if not self._folder.location.is_local:
            self._folder.write_text(self._name, self._path.read_text())

    def close(self) -> None:
        self.flush()
        self._file.close()
        if not self._folder.location.is_local:
            shutil.rmtree(self._path.parent, ignore_errors=True)


def _end_last_line(path: Path) -> None:
    """A crash may have cut the last line short: the next must not continue it."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")
