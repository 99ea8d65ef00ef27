"""Run calls on untrusted files in a pool of processes with bounded time and memory.

A call in the sandbox may raise these errors in addition to its own:

    SandboxError
    ├── TooSlow            the call took longer than its timeout
    ├── TooMuchMemory      the call asked for more memory than its process may have
    └── Crashed            the process died
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
# Maximum number of a call's warnings that are passed on.
_MAX_NOTES = 20


class SandboxError(Exception):
    """Report a call that exceeded its bounds or died.

    The message has no subject, as in "takes longer than 5 s, the timeout". Put one, such as "the file", before it.

    Attributes:
        reason: Name of the kind of error, for metrics.
    """

    reason: ClassVar[str]


class TooSlow(SandboxError):
    """Report a call that took longer than its timeout; its process was killed."""

    reason = "too_slow"


class TooMuchMemory(SandboxError):
    """Report a call that asked for more memory than its process may have."""

    reason = "too_much_memory"


class Crashed(SandboxError):
    """Report that the process of a call died."""

    reason = "crashed"


class Sandbox:
    """Run functions in other processes. If a process hangs, runs out of memory or dies, the caller is not harmed.

    A process takes one call at a time. A process that was killed or died is replaced. All processes end when the
    process that owns the sandbox ends, even if it is killed.

    Args:
        processes: Number of processes, and so of concurrent calls.
        memory_bytes: Maximum memory that each process may allocate.
        prepare: Function that each process runs once, before it takes calls. It must be picklable.
        max_calls: Number of calls after which a process is replaced, because libraries may leak memory; 0 means never.

    Raises:
        ImportError: pebble is not installed.
    """

    def __init__(
        self,
        *,
        processes: int,
        memory_bytes: int,
        prepare: Callable[[], Any] | None = None,
        max_calls: int = 0,
    ):
        # pebble is optional, because the models alone do not need it.
        try:
            from pebble import ProcessPool
        except ImportError as error:
            raise ImportError(
                "a sandbox needs pebble: install xactor-ray[serving], xactor-ray[platform] or pebble"
            ) from error
        self._memory_bytes = memory_bytes
        self._pool = ProcessPool(
            max_workers=processes,
            max_tasks=max_calls,
            initializer=_set_up_process,
            initargs=(memory_bytes, prepare),
            # A fork would copy the locks and the memory of a parent that has threads.
            context=multiprocessing.get_context("spawn"),  # pyright: ignore
        )
        # The pool starts its processes at the first call. Make a first call now, so that no user's call waits for the
        # processes to start.
        self._pool.schedule(_do_nothing)

    def submit(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> Future[T]:
        """Call a function in one of the processes. Log the warnings that this package logs there.

        Args:
            function: Picklable function; its arguments and its result are pickled too.
            arguments: Positional arguments of the function.
            timeout_s: Maximum time of the call, counted from the moment at which a process takes it.

        Returns:
            A future that raises TooSlow, TooMuchMemory, Crashed, or any error of the function. Cancelling the
            future kills the process that runs the call.
        """
        inner = self._pool.schedule(_call, args=(function, arguments), timeout=timeout_s)
        outer: Future[T] = Future()

        def finish(done: Future[tuple[T, list[str]]]) -> None:
            """Pass the result of the pool's future on to the caller's future."""
            if done.cancelled():
                outer.cancel()
            # The call below returns False if the caller has cancelled the future.
            if not outer.set_running_or_notify_cancel():
                return
            if (error := done.exception()) is None:
                result, notes = done.result()
                for note in notes:
                    _log.warning("%s", note)
                outer.set_result(result)
            else:
                outer.set_exception(self._translate(error, timeout_s))

        def forward_cancel(future: Future[T]) -> None:
            """Cancel the call in the pool, which kills its process, if the caller has cancelled the caller's future."""
            if future.cancelled():
                inner.cancel()

        inner.add_done_callback(finish)
        outer.add_done_callback(forward_cancel)
        return outer

    def close(self) -> None:
        """Kill all processes and wait for their end."""
        self._pool.stop()
        self._pool.join()

    def _translate(self, error: BaseException, timeout_s: float) -> BaseException:
        """Return the SandboxError that an error of the pool stands for. Return any other error as it is."""
        from pebble import ProcessExpired

        translated: SandboxError
        match error:
            case TimeoutError():
                translated = TooSlow(f"takes longer than {timeout_s:g} s, the timeout")
            case MemoryError():
                translated = TooMuchMemory(
                    f"takes more than {self._memory_bytes >> 20} MiB of memory, the bound"
                )
            case ProcessExpired():
                translated = Crashed(f"kills the process that decodes it (exit code {error.exitcode})")
            case _:
                return error
        translated.__cause__ = error
        return translated


def _set_up_process(memory_bytes: int, prepare: Callable[[], Any] | None) -> None:
    """Set the limits of a new process, make it end with its parent, and call `prepare`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # Write no core dumps.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Discard stderr, to which libraries write warnings about damaged files. Errors are raised anyway, and the warnings
    # of this package reach the caller.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    """Wait until the parent process ends, then end this process at once.

    Linux's PR_SET_PDEATHSIG is no alternative: it kills this process as soon as the thread that started it ends, even
    if the parent process goes on.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[..., T], arguments: tuple) -> tuple[T, list[str]]:
    """Return the result of a function, and the warnings that this package logged meanwhile."""
    notes = _Notes()
    logger = logging.getLogger("xactor")
    logger.addHandler(notes)
    try:
        return function(*arguments), notes.texts
    finally:
        logger.removeHandler(notes)


class _Notes(logging.Handler):
    """Collect the texts of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < _MAX_NOTES:
            self.texts.append(record.getMessage())


def _do_nothing() -> None:
    """Do nothing."""
