"""Run calls on untrusted files in processes with bounded time and memory.

A call in the sandbox may raise these errors in addition to its own:

    SandboxError           the call is at fault
    ├── TooSlow            the call took longer than its timeout
    ├── TooMuchMemory      the call asked for more memory than its process may have
    └── Crashed            the call killed its process
    ProcessLost            the call is not at fault: its process was killed, or none can start
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
# Maximum number of a call's warnings that are passed on.
_MAX_NOTES = 20
# Seconds between two looks at an idle process, and between two attempts to start a process after a failed one.
_POLL_S = 0.5
# Number of times that a call is begun if its process is killed from outside, as the kernel does if memory is short.
_MAX_ATTEMPTS = 2


class SandboxError(Exception):
    """Report a call that exceeded its bounds or killed its process.

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
    """Report a call that killed its process."""

    reason = "crashed"


class ProcessLost(Exception):
    """Report that no process could finish a call, through no fault of the call. A later attempt may succeed."""


class Sandbox:
    """Run functions in other processes. If a process hangs, runs out of memory or dies, the caller is not harmed.

    A process takes one call at a time. A process that was killed or died is replaced, whether it was busy or idle. All
    processes end when the process that owns the sandbox ends, even if it is killed.

    Each process has a thread of its own in the caller's process and a pipe of its own. So a process that dies at any
    moment, even while it sends a result, harms no other.

    Attributes:
        calls: Calls that no process has taken yet. None wakes a thread that shall end.

    Args:
        processes: Number of processes, and so of concurrent calls.
        memory_bytes: Maximum memory that each process may allocate.
        prepare: Function that each process runs once, before it takes calls. It must be picklable.
        max_calls: Number of calls after which a process is replaced, because libraries may leak memory; 0 means never.
    """

    def __init__(
        self,
        *,
        processes: int,
        memory_bytes: int,
        prepare: Callable[[], Any] | None = None,
        max_calls: int = 0,
    ):
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        # The threads start their processes at once, so that no user's call waits for a process to start.
        self._workers = [_Worker(memory_bytes, prepare, max_calls or None) for _ in range(processes)]
        for worker in self._workers:
            worker.start(self)

    @property
    def fault(self) -> str | None:
        """Return why no call can succeed at present, because no process can start; None if calls can."""
        faults = [worker.fault for worker in self._workers]
        return None if None in faults else faults[0]

    def submit(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> Future[T]:
        """Call a function in one of the processes. Log the warnings that this package logs there.

        Args:
            function: Picklable function; its arguments and its result are pickled too.
            arguments: Positional arguments of the function.
            timeout_s: Maximum time of the call, counted from the moment at which a process takes it.

        Returns:
            A future that raises TooSlow, TooMuchMemory, Crashed, ProcessLost, or any error of the function. Cancelling
            the future kills the process that runs the call.
        """
        call = _Call(function, arguments, timeout_s)
        self.calls.put(call)
        return call.future

    def close(self) -> None:
        """Kill all processes and wait for their end. Cancel the calls that are not finished."""
        for worker in self._workers:
            worker.close(self.calls)
        with suppress(queue.Empty):
            while True:
                call = self.calls.get_nowait()
                if call is not None:
                    call.future.cancel()


class _Call:
    """Hold one call and its future.

    The future stays pending while the call runs, because only a pending future can be cancelled.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float):
        self.function, self.arguments, self.timeout_s = function, arguments, timeout_s
        self.future: Future[Any] = Future()
        self.attempts = 0

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        """Set the future's result or error, unless the caller has cancelled the future."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)


class _Worker:
    """Own one process of a sandbox, and a thread that gives it calls.

    Args:
        memory_bytes: See `Sandbox`.
        prepare: See `Sandbox`.
        max_calls: Number of calls after which the process is replaced; None means never.

    Attributes:
        fault: Why the process cannot start; None if it runs or may start.
    """

    def __init__(self, memory_bytes: int, prepare: Callable[[], Any] | None, max_calls: int | None):
        self.fault: str | None = None
        self._memory_bytes, self._prepare, self._max_calls = memory_bytes, prepare, max_calls
        self._process: Any = None
        # The lock makes sure that a late timeout or cancellation does not kill the process of the next call.
        self._lock = threading.Lock()
        self._call: _Call | None = None
        self._timed_out = self._closed = False

    def start(self, sandbox: Sandbox) -> None:
        """Start the thread, which takes calls of the sandbox."""
        self._thread = threading.Thread(target=self._run, args=(sandbox,), name="sandbox", daemon=True)
        self._thread.start()

    def close(self, calls: "queue.SimpleQueue[_Call | None]") -> None:
        """Kill the process, and wait for its end and the thread's. The queue is the one from which calls are taken."""
        with self._lock:
            self._closed, call = True, self._call
            self._kill()
        if call is not None:
            call.future.cancel()
        # The thread may wait for a call.
        calls.put(None)
        self._thread.join()

    def _run(self, sandbox: Sandbox) -> None:
        """Take calls until the worker is closed, and keep the process alive meanwhile."""
        done = 0
        while not self._closed:
            if done == self._max_calls or self._process is None or not self._process.is_alive():
                done = 0
                self._replace()
            # If another worker has a process, leave the calls to it.
            if self.fault is not None and sandbox.fault is None:
                time.sleep(_POLL_S)
                continue
            try:
                call = sandbox.calls.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if call is None or call.future.cancelled():
                continue
            if self.fault is not None:
                call.finish(error=ProcessLost(self.fault))
                continue
            done += 1
            self._serve(call, sandbox)
        self._end()

    def _replace(self) -> None:
        """End the process if there is one, and start another. Set `fault` if that fails."""
        self._end()
        # A fork would copy the locks and the memory of a parent that has threads.
        context = multiprocessing.get_context("spawn")
        try:
            self._pipe, theirs = context.Pipe()
            arguments = (theirs, self._memory_bytes, self._prepare)
            process = context.Process(target=_take_calls, args=arguments, daemon=True)
            process.start()
            # Only the process holds its end now, so that its death ends the pipe.
            theirs.close()
            with self._lock:
                self._process = process
                if self._closed:
                    self._kill()
            self.fault = self._pipe.recv()
        # Whatever the error, the thread must live on, or calls would wait for ever.
        except Exception as error:
            self.fault = f"a process of the sandbox died while it started ({type(error).__name__} {error})"
        if self.fault is not None:
            self._end()

    def _serve(self, call: _Call, sandbox: Sandbox) -> None:
        """Carry out one call."""
        call.attempts += 1
        with self._lock:
            self._call, self._timed_out = call, False
        timer = threading.Timer(call.timeout_s, self._stop, (call, True))
        timer.daemon = True
        call.future.add_done_callback(lambda _: self._stop(call, False))
        timer.start()
        result: Any = None
        error: BaseException | None = None
        died = False
        try:
            self._pipe.send((call.function, call.arguments))
            result, error, notes = self._pipe.recv()
            for note in notes:
                _log.warning("%s", note)
            if isinstance(error, MemoryError):
                bound = f"takes more than {self._memory_bytes >> 20} MiB of memory, the bound"
                error = _caused(TooMuchMemory(bound), error)
        except (EOFError, OSError):
            died = True
        except Exception as problem:
            # The call cannot be pickled, or its result cannot be unpickled.
            error = problem
        timer.cancel()
        with self._lock:
            self._call = None
        if died:
            self._bury(call, sandbox)
        else:
            call.finish(result, error)

    def _bury(self, call: _Call, sandbox: Sandbox) -> None:
        """Finish a call whose process has died, or put it back if something else killed the process."""
        self._process.join()
        exit_code = self._process.exitcode
        if self._timed_out:
            call.finish(error=TooSlow(f"takes longer than {call.timeout_s:g} s, the timeout"))
        elif self._closed:
            call.future.cancel()
        elif exit_code != -signal.SIGKILL:
            call.finish(error=Crashed(f"kills the process that decodes it (exit code {exit_code})"))
        elif call.attempts < _MAX_ATTEMPTS:
            sandbox.calls.put(call)
        else:
            call.finish(error=ProcessLost(f"its process was killed in {call.attempts} attempts"))

    def _stop(self, call: _Call, timed_out: bool) -> None:
        """Kill the process if it is still at this call."""
        with self._lock:
            if self._call is call:
                self._timed_out = timed_out
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _end(self) -> None:
        """Kill the process if there is one, and wait for its end."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
            process.close()
            self._pipe.close()


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _take_calls(pipe: Any, memory_bytes: int, prepare: Callable[[], Any] | None) -> None:
    """Carry out calls until the parent ends. The main function of a process.

    First send None if the process is ready, or why it is not. Then send three things for each call: the result or
    None, the error or None, and the texts of the warnings that this package logged.
    """
    try:
        _set_up_process(memory_bytes, prepare)
    except Exception as error:
        pipe.send(f"a process of the sandbox cannot start ({type(error).__name__}: {error})")
        return
    pipe.send(None)
    notes = _Notes()
    logging.getLogger("xactor").addHandler(notes)
    while True:
        answer: tuple[Any, BaseException | None]
        notes.texts = []
        try:
            function, arguments = pipe.recv()
            answer = function(*arguments), None
        except EOFError:
            return
        except Exception as error:
            answer = None, _picklable(error)
        try:
            pipe.send((*answer, notes.texts))
        except Exception as error:
            # The result cannot be pickled, or not within the memory.
            pipe.send((None, _picklable(error), notes.texts))


def _picklable(error: Exception) -> Exception:
    """Return an error with its stack trace as a note, or one with the same message if it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _set_up_process(memory_bytes: int, prepare: Callable[[], Any] | None) -> None:
    """Set the limits of a new process, make it end with its parent, and call `prepare`."""
    # Ctrl-C in a terminal reaches all processes, and the parent decides what it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


class _Notes(logging.Handler):
    """Collect the texts of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < _MAX_NOTES:
            self.texts.append(record.getMessage())
