"""A process that decodes what strangers made, and may die of it: bounded in time and memory, away from its actor."""

import atexit
import ctypes
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from pebble import ProcessExpired, ProcessPool

_PR_SET_PDEATHSIG = 1
_START_S = 120  # a first piece of work waits for the process and its models
_work: Callable[[Any], Any]


class Bad(Exception):
    """What cannot be used, by a word to count by and a sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Guard:
    """Runs a function in a process of its own, that is started anew when it had to be killed.

    Args:
        make: called there, gives the function.
        memory_bytes: of that process.
    """

    def __init__(
        self, make: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any], memory_bytes: int
    ):
        self._memory_bytes = memory_bytes
        # Ray ends an actor's children before the actor, which would say at length, as it exits, that they are gone.
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
        self._pool = ProcessPool(
            max_workers=1,
            initializer=_start,
            initargs=(make, arguments, memory_bytes),  # pyright: ignore
            # Not forked: the parent has threads, and what it holds is none of theirs.
            context=multiprocessing.get_context("spawn"),  # pyright: ignore
        )
        self._pool.schedule(_nothing)  # the first piece of work shall not wait for the process to start
        self._fresh = True

    def __call__(self, work: Any, timeout_s: float) -> Any:
        """Raises Bad: `too_slow`, `too_much_memory`, `crashed`; and what the function raises."""
        spare_s, self._fresh = (_START_S if self._fresh else 0), False
        future = self._pool.schedule(_run, args=[work], timeout=timeout_s + spare_s)  # pyright: ignore
        try:
            return future.result()
        except TimeoutError as error:
            raise Bad("too_slow", f"not done in {timeout_s:.0f} s, which is the most") from error
        except MemoryError as error:
            most = f"takes more than {self._memory_bytes >> 20} MiB of memory"
            raise Bad("too_much_memory", most) from error
        except ProcessExpired as error:
            raise Bad("crashed", f"the process that decoded it died (exit code {error.exitcode})") from error

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def _start(make: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any], memory_bytes: int) -> None:
    global _work
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it goes with its actor, however that ends
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries' own news; what is wrong is raised
    os.environ["OMP_NUM_THREADS"] = "1"
    _work = make(**arguments)


def _nothing() -> None:
    pass


def _run(work: Any) -> Any:
    return _work(work)
