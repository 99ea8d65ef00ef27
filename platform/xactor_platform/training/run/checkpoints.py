"""A run's checkpoints in its storage: complete when their manifest is there, right when their checksums are."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pyarrow import fs

from xactor_platform.storage.retries import with_retries
from xactor_platform.training.run.folder import RunFolder

FORMAT = 1  # of what is written below; a newer one is refused
MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
_CHUNK_BYTES = 16 << 20
_THREADS = 4  # of one node, reading a checkpoint

Result = TypeVar("Result")


class Corrupt(ValueError):
    """A checkpoint is not what its manifest says; the message names the file."""


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint: its name in the checkpoint's folder, bytes and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """
    step: how many global steps are in it. ranks: how many wrote it, a part each.
    parameters: of the model, which another must have as well.
    score: held-out loss of that step, None where it was not evaluated.
    config: the resolved options. packages: versions of what wrote it.
    """

    format: int
    step: int
    ranks: int
    parameters: int
    score: float | None
    config: dict[str, Any]
    packages: dict[str, str]
    files: tuple[Written, ...]

    @property
    def folder(self) -> str:
        return folder_of(self.step)


def folder_of(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


class Checkpoints:
    """Writes, finds, verifies and drops the checkpoints of one run.

    Every rank writes its part and a note of it; when all notes are there the manifest is written, which is the moment
    from which the checkpoint exists. Ray Train's own registration is not used: it rewrites one file in place, which a
    crash can cut short, knows no checksum and no way back to the one before, and refuses another version of Ray.

    Args:
        keep: how many of the newest stay.
        keep_best: how many of those with the lowest held-out loss stay besides.
    """

    def __init__(self, folder: RunFolder, *, keep: int = 1, keep_best: int = 0):
        self._folder, self._location = folder, folder.location
        self._keep, self._keep_best = keep, keep_best

    def uri(self, step: int) -> str:
        return f"{self._folder.uri}/{folder_of(step)}"

    # --- finding ---

    def complete(self) -> list[Manifest]:
        """Of all complete checkpoints, the newest first. ValueError where a newer version wrote one."""
        return [manifest for step in reversed(self._steps()) if (manifest := self.manifest(step))]

    def manifest(self, step: int) -> Manifest | None:
        """None where the checkpoint is not complete."""
        try:
            saved = self._folder.read_json(f"{folder_of(step)}/{MANIFEST}")
            if saved is None:
                return None
            if saved["format"] > FORMAT:
                break_off = f"has format {saved['format']}, this version reads up to {FORMAT}"
            else:
                known: dict[str, Any] = {field.name: saved[field.name] for field in fields(Manifest)}
                known["files"] = tuple(Written(**file) for file in saved["files"])
                return Manifest(**known)
        except (ValueError, KeyError, TypeError) as error:
            print(f"CORRUPT checkpoint {self.uri(step)}: {MANIFEST} cannot be read ({error!r})", flush=True)
            return None
        raise ValueError(f"checkpoint {self.uri(step)} {break_off}: go on with the version that wrote it")

    def _steps(self) -> list[int]:
        """Of all folders of checkpoints, complete or not, sorted."""
        found = self._with_retries(self._location.entries, self._folder.uri)
        numbers = [
            info.base_name.removeprefix(_PREFIX) for info in found if info.base_name.startswith(_PREFIX)
        ]
        return sorted(int(number) for number in numbers if number.isdecimal())

    # --- writing ---

    def write_part(self, step: int, rank: int, token: str, files: Mapping[str, Any]) -> None:
        """One rank's files, and then a note of them. `token` is this start's own, or an old note would count."""
        written = [self._write(f"{folder_of(step)}/{name}", state, name) for name, state in files.items()]
        note = json.dumps({"token": token, "files": [asdict(file) for file in written]})
        self._folder.write_text(f"{folder_of(step)}/{_note(rank)}", note)

    def parts(self, step: int, ranks: int, token: str, timeout_s: float) -> tuple[Written, ...]:
        """The files of all ranks, once all have written theirs. TimeoutError names the ranks that have not."""
        deadline, pause_s = time.monotonic() + timeout_s, 0.02
        files: dict[int, list[Written]] = {}
        while missing := [rank for rank in range(ranks) if rank not in files]:
            for rank in missing:
                note = self._folder.read_json(f"{folder_of(step)}/{_note(rank)}") or {}
                if note.get("token") == token:
                    files[rank] = [Written(**file) for file in note["files"]]
            if len(files) < ranks:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{self.uri(step)}: ranks {missing} did not write their part in {timeout_s:g} s"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 1.0)
        return tuple(file for rank in range(ranks) for file in files[rank])

    def commit(self, manifest: Manifest) -> None:
        """From now on it exists. Drops what is to be kept no longer."""
        text = json.dumps(asdict(manifest), indent=1) + "\n"
        self._folder.write_text(f"{manifest.folder}/{MANIFEST}", text)
        for step in self._spare(manifest):
            self._drop(step)

    def sweep(self, after: int) -> list[int]:
        """Drops what a crash left behind after step `after`, complete or not: the run makes them again."""
        gone = [step for step in self._steps() if step > after]
        for step in gone:
            self._drop(step)
        return gone

    def _write(self, path: str, state: Any, name: str) -> Written:
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

    def _spare(self, newest: Manifest) -> list[int]:
        complete = [newest] + [m for m in self.complete() if m.step < newest.step]
        kept = {m.step for m in complete[: self._keep]}
        scored = sorted((m.score, -m.step) for m in complete if m.score is not None)
        kept |= {-step for _, step in scored[: self._keep_best]}
        return [m.step for m in complete if m.step not in kept]

    def _drop(self, step: int) -> None:
        """The manifest first: what is half gone must not count as complete."""
        path = f"{self._location.path}/{folder_of(step)}"

        def drop() -> None:
            filesystem = self._location.filesystem
            if filesystem.get_file_info(f"{path}/{MANIFEST}").type != fs.FileType.NotFound:
                filesystem.delete_file(f"{path}/{MANIFEST}")
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                filesystem.delete_dir(path)

        self._with_retries(drop, self.uri(step))

    # --- reading ---

    def fetch(self, manifest: Manifest, target: Path) -> None:
        """Its files, and no others, under `target`: verified on their way, of a local storage by links.

        Raises:
            Corrupt: a file is missing or another than was written.
            StorageUnavailable: it could not be read for so long.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            list(
                pool.map(lambda file: self._fetch(manifest.folder, file, target / file.name), manifest.files)
            )

    def _fetch(self, folder: str, file: Written, target: Path) -> None:
        source = f"{self._location.path}/{folder}/{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        keep = os.devnull if self._location.is_local else target

        def read() -> tuple[int, str]:
            sha256, size = hashlib.sha256(), 0
            with self._location.filesystem.open_input_stream(source) as stream, open(keep, "wb") as copy:
                while chunk := stream.read(_CHUNK_BYTES):
                    sha256.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
            return size, sha256.hexdigest()

        try:
            size, digest = self._with_retries(read, f"{self._folder.uri}/{folder}/{file.name}")
            if size != file.size and not self._location.is_local:  # over a connection that was cut, perhaps
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
    """A stream to write to that knows what went through it."""

    def __init__(self, stream: Any):
        self._stream, self.size, self.sha256 = stream, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._stream.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


def _note(rank: int) -> str:
    return f"part-{rank:05d}.json"
