"""Notices from outside: a run is to stop, by a signal to its driver or a file in its folder, or a node will leave."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import ray.train

from xactor_platform.training.run.folder import RunFolder

ASK = "stop"
LOOK_S = 1.0  # between two looks for the file in an object store, where one costs a request
ASK_RAY_S = 5.0  # between two questions to Ray, which all ranks wait for
STOP, ASK_RAY = 1, 2


class Notices:
    """What comes to a run from outside: somebody wants it to stop, or a node is about to leave.

        touch runs/tiny/stop

    ends it after the step under way, with a checkpoint: the same command goes on. SIGTERM to the driver, which
    `ray job stop` sends, writes the same file. Before a node leaves, of which Ray knows from its cloud, a checkpoint is
    made, and the run goes on.

    Rank 0 looks, and what it saw travels with a step's sums: so all ranks do the same after the same step.
    """

    def __init__(self, folder: RunFolder, rank: int):
        self._folder, self._rank = folder, rank
        self._every_s = 0.0 if folder.location.is_local else LOOK_S
        self._looked = self._asked_ray = time.monotonic()
        self._stop, self._left_for = False, ""

    def seen(self) -> int:
        """Rank 0's flags for the step to come; 0 on the others."""
        if self._rank:
            return 0
        now = time.monotonic()
        if not self._stop and now - self._looked >= self._every_s:
            self._looked = now
            with contextlib.suppress(OSError):  # whoever cannot read now looks again
                self._stop = self._folder.read_text(ASK, storage_timeout_s=0) is not None
        ask_ray = now - self._asked_ray >= ASK_RAY_S
        if ask_ray:
            self._asked_ray = now
        return STOP * self._stop + ASK_RAY * ask_ray

    def stop(self, flags: int) -> bool:
        return bool(flags & STOP)

    def leaving(self, flags: int) -> bool:
        """Whether Ray says that a node will leave, and has not said so of the same before. On all ranks alike."""
        if not flags & ASK_RAY:
            return False
        info = ray.train.get_preemption_info()
        found = ", ".join(sorted(info.preempted_node_to_ranks)) if info else ""
        new, self._left_for = bool(found) and found != self._left_for, found
        if new and not self._rank:
            print(f"nodes are about to leave ({found}): making a checkpoint", flush=True)
        return new


@contextlib.contextmanager
def stopping_by_signal(folder: RunFolder) -> Iterator[threading.Event]:
    """While inside, the first SIGTERM asks the run to stop, and a second one ends this process at once.

    What an earlier stop left is taken away. The event is set when a signal came. Outside the main thread, which alone
    may have signals, nothing is changed.
    """
    folder.delete(ASK)
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def ask(number: int, frame: object) -> None:
        if came.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        came.set()
        print("SIGTERM: stopping after this step, with a checkpoint; once more to end at once", flush=True)
        threading.Thread(target=folder.write_text, args=(ASK, "SIGTERM\n"), daemon=True).start()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(OSError):
            folder.delete(ASK)
