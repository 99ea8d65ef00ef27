"""Read published weights from a folder or a URI. Those at a URI are copied to each node's disk, once for all ranks."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from xactor_platform.storage.location import Location, child_uri
from xactor_platform.storage.retries import with_retries

# Files that are copied at the same time, and bytes of a request.
_THREADS, _CHUNK_BYTES = 4, 16 << 20


def check_weights(folder: str, what: str = "weights") -> None:
    """Check that a folder or URI holds a model.

    Args:
        folder: the folder or URI.
        what: names the model in the message.

    Raises:
        FileNotFoundError: it holds no config.json.
        OSError: it cannot be read. The message names the cause.
    """
    place = Location.parse(folder)
    config = with_retries(lambda: place.filesystem.get_file_info(f"{place.path}/config.json"), folder)
    if config.type != fs.FileType.File:
        raise FileNotFoundError(f"no {what} in {folder}: config.json is missing")


def read_config(folder: str) -> dict[str, Any]:
    """Return the config.json of a model in a folder or at a URI. Raise ValueError if it is damaged."""

    def read() -> bytes:
        with Location.parse(folder).open("config.json") as file:
            return file.read()

    try:
        config = json.loads(with_retries(read, folder))
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/config.json: no JSON object")
    return config


def local_weights(folder: str, *components: str) -> str:
    """Return a folder's path on this node. A folder at a URI is copied to this node first, if it is not there yet.

    The copy lies in `xactor-weights` in the folder for temporary files, which TMPDIR names. Processes that ask for the
    same folder at the same time wait for one copy. A folder whose files have changed is copied again.

    Args:
        folder: the folder or URI.
        *components: the subfolders that are needed. By default the files directly in the folder.

    Raises:
        FileNotFoundError: the URI, or a subfolder, holds no files.
        OSError: the copy failed. The message names the cause.
    """
    if "://" not in folder:
        return folder
    files = {}
    for component in components or ("",):
        uri = child_uri(folder, component) if component else folder
        place = Location.parse(uri)
        found = [f for f in with_retries(place.entries, uri) if f.is_file]
        if not found:
            raise FileNotFoundError(f"no weights in {uri}: no files are there")
        files.update({f"{component}/{f.base_name}".lstrip("/"): f for f in found})
    listing = sorted((name, f.size, f.mtime_ns) for name, f in files.items())
    key = hashlib.sha256(json.dumps([folder, listing]).encode()).hexdigest()[:24]
    cache = Path(tempfile.gettempdir(), "xactor-weights")
    cache.mkdir(exist_ok=True)
    target = cache / key
    # The lock is released when the file is closed, or when the process dies.
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _copy(folder, files, target)
    return str(target)


def _copy(folder: str, files: dict[str, fs.FileInfo], target: Path) -> None:
    """Copy files, by their names below a URI, to a local folder, which appears when it is complete."""
    for leftover in target.parent.glob(f"{target.name}.*.partial"):
        shutil.rmtree(leftover)
    partial_target = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
    size = sum(file.size for file in files.values())
    print(f"{folder}: copying {size / 1e9:.1f} GB of weights to {target}", flush=True)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            copies = [
                threads.submit(
                    with_retries,
                    partial(_copy_file, folder, file, partial_target / name),
                    f"{folder}: {name}",
                )
                for name, file in files.items()
            ]
            for copy in copies:
                copy.result()
        os.rename(partial_target, target)
    except BaseException:
        shutil.rmtree(partial_target, ignore_errors=True)
        raise


def _copy_file(folder: str, file: fs.FileInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(
        file.path,
        str(target),
        source_filesystem=Location.parse(folder).filesystem,
        destination_filesystem=fs.LocalFileSystem(),
        chunk_size=_CHUNK_BYTES,
    )
    if target.stat().st_size != file.size:
        raise OSError(f"{file.base_name} was cut: {target.stat().st_size:,} of {file.size:,} bytes arrived")
