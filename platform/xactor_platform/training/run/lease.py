"""One driver a run: a lease in the run's folder, renewed while its holder lives."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xactor_platform.training.run.folder import RunFolder

LEASE = "lease.json"
RENEW_S = 2.0
STALE_S = 12.0  # without a renewal: its holder is gone


class RunIsTaken(ValueError):
    """Somebody else trains this run."""


class LeaseLost(RuntimeError):
    """Another driver has taken the run over."""


@contextlib.contextmanager
def lease(folder: RunFolder) -> Iterator[str]:
    """Holds the run while inside; gives the holder's name, which `is_held` knows.

    A lease that a crash left is taken over: at once where its holder was a process of this machine that is gone, else
    after seeing for 12 s that nobody renews it. No clock of another machine is trusted.

    Raises:
        RunIsTaken: its holder lives; the message says where.
    """
    mine = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot(),
        "process": os.getpid(),
        "began": _began(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    _wait_for(folder)
    _write(folder, mine, 0)
    if _read(folder).get("holder") != mine["holder"]:  # both saw it free
        raise RunIsTaken(_taken(folder, _read(folder)))
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, mine, ended), daemon=True)
    renewing.start()
    try:
        yield mine["holder"]
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if is_held(folder, mine["holder"]):
                folder.delete(LEASE)


def is_held(folder: RunFolder, holder: str) -> bool:
    """Whether nobody else has it."""
    return _read(folder).get("holder") == holder


def _wait_for(folder: RunFolder) -> None:
    found = _read(folder)
    if not found or _is_gone(found):
        return
    print(f"{folder.uri}: somebody trained this run; seeing whether they still do", flush=True)
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = _read(folder)
        if not now or _is_gone(now):
            return
        if now != found:
            raise RunIsTaken(_taken(folder, now))


def _taken(folder: RunFolder, found: dict[str, Any]) -> str:
    return (
        f"run {folder.uri} is being trained by process {found.get('process')} on {found.get('host')} since "
        f"{found.get('since')}: stop that one (touch {folder.uri}/stop), or use another --run.name"
    )


def _renew(folder: RunFolder, mine: dict[str, Any], ended: threading.Event) -> None:
    beats = 0
    while not ended.wait(RENEW_S):
        beats += 1
        with contextlib.suppress(OSError):  # a storage that fails for a while does not end a run
            if is_held(folder, mine["holder"]):
                _write(folder, mine, beats)


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        return folder.read_json(LEASE) or {}
    except ValueError:
        return {}


def _write(folder: RunFolder, mine: dict[str, Any], beats: int) -> None:
    folder.write_text(LEASE, json.dumps({**mine, "beats": beats}) + "\n")


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, since it was started, that exists no more."""
    if found.get("host") != socket.gethostname() or found.get("boot") != _boot():
        return False
    return _began(int(found.get("process", 0))) != found.get("began")


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _began(process: int) -> str:
    """When it was started, as the kernel counts; empty for one that does not exist or has ended."""
    with contextlib.suppress(OSError, IndexError):
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""
