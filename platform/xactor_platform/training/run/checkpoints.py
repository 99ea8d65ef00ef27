"""Write, find, verify and drop a run's checkpoints.

A checkpoint is a folder in the run's folder. Its manifest lists its files and their checksums. A checkpoint is complete
when it has a manifest, and intact when the files match the checksums.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from pyarrow import fs

from xactor_platform.storage.retries import with_retries
from xactor_platform.training.run.folder import RunFolder

FORMAT = 1
"""Version of the checkpoints' format. Checkpoints of a newer format are refused."""

MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
# Number of bytes that are read and hashed at once.
_CHUNK_BYTES = 16 << 20
# Number of threads with which a node reads the files of a checkpoint.
_THREADS = 4

Result = TypeVar("Result")


class Corrupt(ValueError):
    """Report a checkpoint whose files differ from its manifest; the message names the first such file."""


class NewerFormat(ValueError):
    """Report a checkpoint that a newer version of this project wrote."""


@dataclass(frozen=True)
class Written:
    """Describe a file of a checkpoint."""

    name: str
    """Path of the file in the checkpoint's folder."""
    size: int
    """Length in bytes."""
    sha256: str
    """SHA-256 in hex."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describe a complete checkpoint."""

    format: int
    """Version of the format; FORMAT in checkpoints that this version writes."""
    step: int
    """Number of global steps (optimizer steps) that the run had done."""
    ranks: int
    """Number of ranks that wrote the checkpoint. Each wrote its own files."""
    parameters: int
    """Number of parameters of the model. A model that loads the checkpoint must have the same number."""
    score: float | None
    """Held-out loss after that step; None if that step was not evaluated."""
    config: dict[str, Any]
    """All options of the training, from `as_dict`."""
    packages: dict[str, str]
    """Versions, by name, of the packages with which the checkpoint was written."""
    files: tuple[Written, ...]
    """The files of all ranks."""

    @classmethod
    def parse(cls, saved: dict[str, Any], step: int) -> Self:
        """Return the manifest that a parsed JSON document describes.

        Args:
            saved: the document.
            step: step of the checkpoint's folder.

        Raises:
            NewerFormat: a newer version of this project wrote the document.
            KeyError, TypeError, ValueError: the document is not the manifest of this checkpoint.
        """
        if saved["format"] > FORMAT:
            raise NewerFormat(f"has format {saved['format']}, this version reads up to {FORMAT}")
        known: dict[str, Any] = {field.name: saved[field.name] for field in fields(cls)}
        known["files"] = files = tuple(Written(**file) for file in saved["files"])
        if saved["step"] != step:
            raise ValueError(f"is for step {saved['step']}")
        for name in ("ranks", "parameters"):
            if not isinstance(saved[name], int) or saved[name] < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {saved[name]}")
        if not isinstance(saved["score"], float | int | None):
            raise ValueError(f"score must be a number or null, got {saved['score']}")
        # A name that leads out of the checkpoint's folder would write to another place of this machine.
        inside = [".." not in Path(file.name).parts and not Path(file.name).is_absolute() for file in files]
        if not files or not all(inside):
            raise ValueError("names no files, or files outside the checkpoint's folder")
        return cls(**known)

    @property
    def folder(self) -> str:
        """Return the name of the checkpoint's folder in the run's folder."""
        return folder_of(self.step)


def folder_of(step: int) -> str:
    """Return the name, in the run's folder, of the folder of the checkpoint after global step `step`."""
    return f"{_PREFIX}{step:08d}"


class Checkpoints:
    """Write, find, verify and drop the checkpoints of one run.

    Every rank writes its files, and then a note: a small file that lists the files of this rank. When the notes of all
    ranks exist, rank 0 writes the manifest, and from then on the checkpoint is complete.

    Ray Train's own list of checkpoints is not used, for four reasons. It is one file that is rewritten in place, which
    a crash can cut short. It has no checksums. Ray Train cannot fall back to the previous checkpoint. Another version
    of Ray cannot read the list.

    Args:
        folder: the run's folder.
        keep: number of the newest checkpoints to keep.
        keep_best: number of checkpoints with the lowest held-out loss to keep in addition.
    """

    def __init__(self, folder: RunFolder, *, keep: int = 1, keep_best: int = 0):
        self._folder, self._location = folder, folder.location
        self._keep, self._keep_best = keep, keep_best

    def uri(self, step: int) -> str:
        """Return the path or URI of the folder of a step's checkpoint, for messages."""
        return f"{self._folder.uri}/{folder_of(step)}"

    def complete(self) -> list[Manifest]:
        """Return the complete checkpoints, newest first. Raise ValueError if a newer version wrote one."""
        return [manifest for step in reversed(self._steps()) if (manifest := self.manifest(step))]

    def manifest(self, step: int) -> Manifest | None:
        """Return the manifest of a step's checkpoint. Return None if it is missing or cannot be read.

        Raises:
            ValueError: a newer version of this project wrote it.
        """
        try:
            saved = self._folder.read_json(f"{folder_of(step)}/{MANIFEST}")
            return None if saved is None else Manifest.parse(saved, step)
        except NewerFormat as error:
            raise ValueError(
                f"checkpoint {self.uri(step)} {error}: go on with the version that wrote it"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"CORRUPT checkpoint {self.uri(step)}: {MANIFEST} cannot be read ({error!r})", flush=True)
            return None

    def unreadable(self) -> list[int]:
        """Return the steps of the checkpoints whose manifest exists but cannot be read."""
        paths = {step: f"{folder_of(step)}/{MANIFEST}" for step in self._steps()}
        return [
            step
            for step, path in paths.items()
            if self._folder.read_text(path) is not None and not self.manifest(step)
        ]

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoint folders, complete or not, sorted."""
        found = self._with_retries(self._location.entries, self._folder.uri)
        numbers = [
            info.base_name.removeprefix(_PREFIX) for info in found if info.base_name.startswith(_PREFIX)
        ]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def write_rank(self, step: int, rank: int, token: str, files: Mapping[str, Any]) -> None:
        """Write one rank's files, and then the note that lists them.

        Args:
            step: the checkpoint's step.
            rank: the rank that writes.
            token: identifies this start of the ranks; a note of an earlier start does not count.
            files: objects that `torch.save` can save, by the name of their file.
        """
        written = [self._write(f"{folder_of(step)}/{name}", state, name) for name, state in files.items()]
        note = json.dumps({"token": token, "files": [asdict(file) for file in written]})
        self._folder.write_text(f"{folder_of(step)}/{_note_name(rank)}", note)

    def wait_for_ranks(self, step: int, ranks: int, token: str, timeout_s: float) -> tuple[Written, ...]:
        """Wait until all ranks have written their notes, and return the files of all ranks.

        Args:
            step: the checkpoint's step.
            ranks: number of ranks.
            token: identifies this start of the ranks; see `write_rank`.
            timeout_s: seconds to wait.

        Raises:
            TimeoutError: ranks have not written their notes after the timeout; the message names these ranks.
        """
        deadline, pause_s = time.monotonic() + timeout_s, 0.02
        files: dict[int, list[Written]] = {}
        while missing := [rank for rank in range(ranks) if rank not in files]:
            for rank in missing:
                note = self._folder.read_json(f"{folder_of(step)}/{_note_name(rank)}") or {}
                if note.get("token") == token:
                    files[rank] = [Written(**file) for file in note["files"]]
            if len(files) < ranks:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{self.uri(step)}: ranks {missing} did not write their files in {timeout_s:g} s"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 1.0)
        return tuple(file for rank in range(ranks) for file in files[rank])

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the checkpoint complete, and drop checkpoints that are no longer kept."""
        text = json.dumps(asdict(manifest), indent=1) + "\n"
        self._folder.write_text(f"{manifest.folder}/{MANIFEST}", text)
        for step in self._steps_to_drop(manifest):
            self._drop(step)

    def sweep(self, after: int) -> list[int]:
        """Drop all checkpoints after step `after`, complete or not, because the run will make them again.

        Returns:
            the steps of these checkpoints.
        """
        dropped = [step for step in self._steps() if step > after]
        for step in dropped:
            self._drop(step)
        return dropped

    def _write(self, path: str, state: Any, name: str) -> Written:
        """Save `state` to `path` in the run's folder, with retries. `name` is the file's path in the checkpoint."""
        # Imported here because the driver, which only reads manifests, must not import torch.
        import torch

        target = f"{self._location.path}/{path}"

        def write() -> Written:
            self._location.filesystem.create_dir(os.path.dirname(target), recursive=True)
            with self._location.filesystem.open_output_stream(target) as stream:
                hashed = _Hashed(stream)
                torch.save(state, cast(Any, hashed))
            return Written(name, hashed.size, hashed.sha256.hexdigest())

        return self._with_retries(write, f"{self._folder.uri}/{path}")

    def _with_retries(self, work: Callable[[], Result], what: str) -> Result:
        return with_retries(work, what, self._folder.storage_timeout_s)

    def _steps_to_drop(self, newest: Manifest) -> list[int]:
        """Return the steps of the complete checkpoints that are neither among the newest nor among the best."""
        complete = [newest] + [m for m in self.complete() if m.step < newest.step]
        kept = {m.step for m in complete[: self._keep]}
        # Of two equal losses the newer checkpoint comes first.
        scored = sorted((m.score, -m.step) for m in complete if m.score is not None)
        kept |= {-step for _, step in scored[: self._keep_best]}
        return [m.step for m in complete if m.step not in kept]

    def _drop(self, step: int) -> None:
        """Delete a checkpoint, its manifest first, so that a partly deleted checkpoint does not count as complete."""
        path = f"{self._location.path}/{folder_of(step)}"

        def drop() -> None:
            filesystem = self._location.filesystem
            if filesystem.get_file_info(f"{path}/{MANIFEST}").type != fs.FileType.NotFound:
                filesystem.delete_file(f"{path}/{MANIFEST}")
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                filesystem.delete_dir(path)

        self._with_retries(drop, self.uri(step))

    def fetch(self, manifest: Manifest, target: Path) -> None:
        """Copy the checkpoint's files to the folder `target`, and verify them. Local files are linked, not copied.

        Raises:
            Corrupt: a file is missing, or differs from the manifest.
            StorageUnavailable: the storage failed at every try to read a file until the timeout.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            jobs = pool.map(
                lambda file: self._fetch(manifest.folder, file, target / file.name), manifest.files
            )
            # Wait for all files, and raise the first error.
            list(jobs)

    def _fetch(self, folder: str, file: Written, target: Path) -> None:
        """Copy one file of the checkpoint in `folder` to `target`, and verify it."""
        source = f"{self._location.path}/{folder}/{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        # A local file is only read, to verify it. At the end, `target` becomes a link to it.
        copied_to = os.devnull if self._location.is_local else target

        def read() -> tuple[int, str]:
            sha256, size = hashlib.sha256(), 0
            with self._location.filesystem.open_input_stream(source) as stream, open(copied_to, "wb") as copy:
                while chunk := stream.read(_CHUNK_BYTES):
                    sha256.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
            return size, sha256.hexdigest()

        try:
            size, digest = self._with_retries(read, f"{self._folder.uri}/{folder}/{file.name}")
            # The connection may have been cut without an error. So read the file once more.
            if size != file.size and not self._location.is_local:
                size, digest = self._with_retries(read, f"{self._folder.uri}/{folder}/{file.name}")
        except FileNotFoundError as error:
            raise Corrupt(f"{file.name} is missing") from error
        if size != file.size:
            raise Corrupt(f"{file.name} has {size} bytes, its manifest says {file.size}")
        if digest != file.sha256:
            raise Corrupt(f"{file.name} has another SHA-256 than its manifest says")
        if self._location.is_local:
            target.symlink_to(source)


class _Hashed:
    """Write bytes to a stream, and compute their number and their SHA-256."""

    def __init__(self, stream: Any):
        self._stream, self.size, self.sha256 = stream, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._stream.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


def _note_name(rank: int) -> str:
    """Return the name of the file in which a rank lists its files of a checkpoint."""
    return f"part-{rank:05d}.json"
