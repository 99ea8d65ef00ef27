"""Run calls on untrusted files in a pool of processes that are bounded in time and memory, and replaceable.

Errors of a call:

    SandboxError
    ├── TooSlow            the call took longer than its timeout
    ├── TooMuchMemory      the call asked for more memory than its process may have
    └── Crashed            the process died
"""

import multiprocessing
import multiprocessing.connection
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class SandboxError(Exception):
    """Report a call that broke its bounds. The message continues a sentence such as "the file".

    Attributes:
        reason: one word to count by.
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
    """Run functions in processes that may hang, run out of memory or die without harm to the caller.

    A process takes one call at a time. One that was killed or died is replaced. All processes end with the process
    that owns the sandbox, however that ends.

    Args:
        processes: Number of processes, and so of concurrent calls.
        memory_bytes: Bound on the memory that each process may allocate.
        prepare: Function that each process calls once before its first task. It must be picklable.
        max_calls: Number of calls after which a process is replaced, against slow leaks; 0 means never.

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
        # Optional, because the models alone do not need it.
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
            initializer=_start,
            initargs=(memory_bytes, prepare),
            # A fork would copy the locks and the memory of a parent that has threads.
            context=multiprocessing.get_context("spawn"),  # pyright: ignore
        )
        # The pool starts its processes at the first call. Start now, so that no caller waits for that.
        self._pool.schedule(_nothing)

    def submit(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> Future[T]:
        """Call a function in one of the processes.

        Args:
            function: Picklable function; its arguments and its result are pickled too.
            arguments: Positional arguments of the function.
            timeout_s: Bound on the call's time, counted from when a process takes the call.

        Returns:
            A future that raises TooSlow, TooMuchMemory, Crashed, or what the function raises. Cancelling it kills the
            process of a call that runs.
        """
        inner = self._pool.schedule(function, args=arguments, timeout=timeout_s)
        outer: Future[T] = Future()

        def finish(done: Future[T]) -> None:
            if done.cancelled():
                outer.cancel()
            # False where the caller has cancelled it.
            if not outer.set_running_or_notify_cancel():
                return
            if (error := done.exception()) is None:
                outer.set_result(done.result())
            else:
                outer.set_exception(self._translate(error, timeout_s))

        inner.add_done_callback(finish)
        outer.add_done_callback(lambda future: inner.cancel() if future.cancelled() else None)
        return outer

    def close(self) -> None:
        """Kill all processes and wait for their end."""
        self._pool.stop()
        self._pool.join()

    def _translate(self, error: BaseException, timeout_s: float) -> BaseException:
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


def _start(memory_bytes: int, prepare: Callable[[], Any] | None) -> None:
    """Bound a new process, tie it to its parent and prepare it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries write warnings about damaged files there. Errors are raised instead.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    """Wait for the parent's end, then end this process at once.

    Linux' PR_SET_PDEATHSIG would not do: it fires when the thread that started this process ends.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _nothing() -> None:
    """Do nothing."""
