"""Receive notices from outside a run: a signal or a file that asks the run to stop, or a node that will leave."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from xactor_platform.training.run.folder import RunFolder

ASK = "stop"
"""Name of the file in the run's folder that asks the run to stop."""

LOOK_S = 1.0
"""Seconds between two looks for the file `stop` in an object store, where each look costs a request."""

ASK_RAY_S = 5.0
"""Seconds between two questions to Ray whether nodes will leave the cluster. All ranks wait for the answer."""

STOP, ASK_RAY = 1, 2
"""Flags, as bits, that rank 0 sends to all ranks. STOP: stop the run. ASK_RAY: ask Ray whether nodes will leave."""


class Notices:
    """Look for a request to stop, and for nodes that are about to leave.

    A file `stop` in the run's folder (`touch runs/tiny/stop`) stops the run after the current step, with a checkpoint.
    The command that started the run also resumes it. When the driver receives SIGTERM, which `ray job stop` sends, it
    writes this file. When Ray learns from the cloud that a node will leave, the run makes a checkpoint and goes on.

    Only rank 0 looks for the file. Its findings are flags. The training loop sends these flags to all ranks together
    with the totals of the step, so that all ranks act on the flags after the same step.
    """

    def __init__(self, folder: RunFolder, rank: int):
        self._folder, self._rank = folder, rank
        self._every_s = 0.0 if folder.location.is_local else LOOK_S
        self._looked = self._asked_ray = time.monotonic()
        self._stop, self._reported_nodes = False, ""

    def flags(self) -> int:
        """Return the flags that rank 0 sends with the next step; 0 on the other ranks."""
        if self._rank:
            return 0
        now = time.monotonic()
        if not self._stop and now - self._looked >= self._every_s:
            self._looked = now
            # No retries: if the file cannot be read now, the next look reads it.
            with contextlib.suppress(OSError):
                self._stop = self._folder.read_text(ASK, storage_timeout_s=0) is not None
        ask_ray = now - self._asked_ray >= ASK_RAY_S
        if ask_ray:
            self._asked_ray = now
        return (STOP if self._stop else 0) | (ASK_RAY if ask_ray else 0)

    def stop(self, flags: int) -> bool:
        """Return whether the flags that all ranks received ask the run to stop."""
        return bool(flags & STOP)

    def leaving(self, flags: int) -> bool:
        """Return whether Ray reports nodes that will leave, and not the same nodes as in its last report.

        All ranks must call it.
        """
        if not flags & ASK_RAY:
            return False
        import ray.train

        info = ray.train.get_preemption_info()
        nodes = ", ".join(sorted(info.preempted_node_to_ranks)) if info else ""
        is_new = bool(nodes) and nodes != self._reported_nodes
        self._reported_nodes = nodes
        if is_new and not self._rank:
            print(f"nodes are about to leave ({nodes}): making a checkpoint", flush=True)
        return is_new


@contextlib.contextmanager
def stopping_by_signal(folder: RunFolder) -> Iterator[threading.Event]:
    """Let the first SIGTERM inside the block ask the run to stop, and a second one end this process at once.

    The block gets an event that is set when the signal arrives. A file `stop` from before the block is deleted. Outside
    the main thread, signals are not handled, because Python does not allow it.
    """
    folder.delete(ASK)
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def ask(number: int, frame: object) -> None:
        # If this is the second signal, end the process, as the signal would do without this handler.
        if received.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        received.set()
        print(
            "SIGTERM: stopping after this step, with a checkpoint; send it again to end at once", flush=True
        )
        # Writing may take long, and a handler must return soon.
        threading.Thread(target=folder.write_text, args=(ASK, "SIGTERM\n"), daemon=True).start()

    previous_handler = signal.signal(signal.SIGTERM, ask)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
        with contextlib.suppress(OSError):
            folder.delete(ASK)
