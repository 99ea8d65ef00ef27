"""Receive notices from outside a run: stop, by a signal or a file in its folder, or a node that will leave."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from xactor_platform.training.run.folder import RunFolder

ASK = "stop"
LOOK_S = 1.0
"""Seconds between two looks for the file in an object store, where each costs a request."""

ASK_RAY_S = 5.0
"""Seconds between two questions to Ray, which all ranks wait for."""

STOP, ASK_RAY = 1, 2
"""Flags that rank 0 sends to all ranks."""


class Notices:
    """Look for a request to stop, and for nodes that are about to leave.

        touch runs/tiny/stop

    stops the run after the current step, with a checkpoint; the same command resumes it. SIGTERM to the driver, which
    `ray job stop` sends, writes the same file. Before a node leaves, of which Ray knows from its cloud, a checkpoint is
    made, and the run goes on.

    Rank 0 looks, and its flags travel with a step's sums, so that all ranks do the same after the same step.
    """

    def __init__(self, folder: RunFolder, rank: int):
        self._folder, self._rank = folder, rank
        self._every_s = 0.0 if folder.location.is_local else LOOK_S
        self._looked = self._asked_ray = time.monotonic()
        self._stop, self._left_for = False, ""

    def flags(self) -> int:
        """Return rank 0's flags for the next step; 0 on the other ranks."""
        if self._rank:
            return 0
        now = time.monotonic()
        if not self._stop and now - self._looked >= self._every_s:
            self._looked = now
            # If it cannot be read now, the next look reads it.
            with contextlib.suppress(OSError):
                self._stop = self._folder.read_text(ASK, storage_timeout_s=0) is not None
        ask_ray = now - self._asked_ray >= ASK_RAY_S
        if ask_ray:
            self._asked_ray = now
        return STOP * self._stop + ASK_RAY * ask_ray

    def stop(self, flags: int) -> bool:
        """Return whether the run is to stop."""
        return bool(flags & STOP)

    def leaving(self, flags: int) -> bool:
        """Return whether Ray newly says that a node will leave. All ranks call it."""
        if not flags & ASK_RAY:
            return False
        import ray.train

        info = ray.train.get_preemption_info()
        found = ", ".join(sorted(info.preempted_node_to_ranks)) if info else ""
        new, self._left_for = bool(found) and found != self._left_for, found
        if new and not self._rank:
            print(f"nodes are about to leave ({found}): making a checkpoint", flush=True)
        return new


@contextlib.contextmanager
def stopping_by_signal(folder: RunFolder) -> Iterator[threading.Event]:
    """Let the first SIGTERM inside the block ask the run to stop, and a second one end this process at once.

    The event is set when a signal came. A file that an earlier stop left is deleted. Outside the main thread, which
    alone may handle signals, nothing changes.
    """
    folder.delete(ASK)
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def ask(number: int, frame: object) -> None:
        if received.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        received.set()
        print(
            "SIGTERM: stopping after this step, with a checkpoint; send it again to end at once", flush=True
        )
        threading.Thread(target=folder.write_text, args=(ASK, "SIGTERM\n"), daemon=True).start()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(OSError):
            folder.delete(ASK)
