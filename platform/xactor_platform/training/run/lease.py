"""Allow only one driver at a time to train a run.

The driver holds a lease: a file in the run's folder that names the driver as its holder, and that the driver renews.
"""

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
"""Seconds between two renewals."""

STALE_S = 12.0
"""Seconds without a renewal after which the holder counts as dead."""


class RunIsTaken(ValueError):
    """Report that another driver is training this run."""


class LeaseLost(RuntimeError):
    """Report that another driver has taken the run over."""


@contextlib.contextmanager
def lease(folder: RunFolder) -> Iterator[str]:
    """Hold the run's lease inside the block, and give the block the holder's name, a random identifier.

    A lease that a crash left is taken over: at once if its holder was a process of this machine that has ended,
    otherwise after nobody has renewed the lease for 12 s. Clocks of other machines are not trusted: only a change of
    the file counts as a renewal.

    Raises:
        RunIsTaken: another driver holds the lease; the message names that driver.
    """
    mine = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot(),
        "process": os.getpid(),
        "began": _began(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    _wait_until_free(folder)
    _write(folder, mine, 0)
    # Two drivers may have written a lease at the same time. The driver that wrote last holds it.
    if _read(folder).get("holder") != mine["holder"]:
        raise RunIsTaken(_taken_message(folder, _read(folder)))
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
    """Return whether `holder` still holds the lease."""
    return _read(folder).get("holder") == holder


def check_held(folder: RunFolder, holder: str) -> None:
    """Raise LeaseLost if another driver has taken the run over.

    When a driver crashes, its ranks may live on. They must not write into the run's folder after another driver has
    taken the run over.
    """
    if not is_held(folder, holder):
        raise LeaseLost(f"run {folder.uri} was taken over by another driver: this one ends")


def _wait_until_free(folder: RunFolder) -> None:
    """Wait until it is certain that the lease has no living holder. Raise RunIsTaken if it has one."""
    found = _read(folder)
    if not found or _has_ended(found):
        return
    print(
        f"{folder.uri}: another driver had this run; waiting {STALE_S:g} s to see if it has ended", flush=True
    )
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = _read(folder)
        if not now or _has_ended(now):
            return
        if now != found:
            raise RunIsTaken(_taken_message(folder, now))


def _taken_message(folder: RunFolder, found: dict[str, Any]) -> str:
    return (
        f"run {folder.uri} is being trained by process {found.get('process')} on {found.get('host')} since "
        f"{found.get('since')}: stop that process (touch {folder.uri}/stop), or use another --run.name"
    )


def _renew(folder: RunFolder, mine: dict[str, Any], ended: threading.Event) -> None:
    """Renew the lease every RENEW_S seconds until `ended` is set, unless another driver holds the lease."""
    beats = 0
    while not ended.wait(RENEW_S):
        # The file contains this number, so that each renewal changes the file.
        beats += 1
        # A storage that fails for a while does not end a run.
        with contextlib.suppress(OSError):
            if is_held(folder, mine["holder"]):
                _write(folder, mine, beats)


def _read(folder: RunFolder) -> dict[str, Any]:
    """Return the content of the lease file, or {} if there is no such file or it cannot be parsed."""
    try:
        found = folder.read_json(LEASE)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(folder: RunFolder, mine: dict[str, Any], beats: int) -> None:
    folder.write_text(LEASE, json.dumps({**mine, "beats": beats}) + "\n")


def _has_ended(found: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine and has ended.

    Process numbers are comparable only on the same host and within the same boot. A process with the same number but
    another start time is not the holder.
    """
    if found.get("host") != socket.gethostname() or found.get("boot") != _boot():
        return False
    process = found.get("process")
    return not isinstance(process, int) or _began(process) != found.get("began")


def _boot() -> str:
    """Return an identifier of this machine's last boot; empty if it is not known."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _began(process: int) -> str:
    """Return the start time of a process in the kernel's ticks; empty if it does not exist or has ended."""
    with contextlib.suppress(OSError, IndexError):
        # proc(5) counts the fields from 1. Field 2 is the command's name, which ends with the last `)`. Field 3 is the
        # state: zombies (Z) and dead processes (X) have ended. The list `fields` begins with field 4, so its item 18 is
        # field 22, the start time.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""
