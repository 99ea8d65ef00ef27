"""Test that the sandbox limits the time and memory of calls, survives their crashes and ends with its owner."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import psutil
import pytest

from xactor.sandbox import Crashed, ProcessLost, Sandbox, SandboxError, TooMuchMemory, TooSlow

prepared: list[str] = []


def prepare() -> None:
    prepared.append("well")


def work(task: str) -> str:
    if task == "sleep":
        time.sleep(60)
    if task == "die":
        os._exit(7)
    if task == "eat":
        bytearray(3 << 30)
    if task == "raise":
        raise ValueError("no good")
    print("libraries' warnings", file=sys.stderr)
    if task == "warn":
        for number in range(100):
            logging.getLogger("xactor.media").warning("a.ts: note %d", number)
        logging.getLogger("xactor.media").info("a.ts: no note")
        logging.getLogger("library").warning("no note")
    return f"{prepared[0]} {task}"


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(processes=1, memory_bytes=2 << 30, prepare=prepare)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize(
    ("task", "timeout_s", "error", "says"),
    [
        ("die", 20, Crashed, "exit code 7"),
        ("eat", 20, TooMuchMemory, "more than 2048 MiB"),
        ("sleep", 0.5, TooSlow, "longer than 0.5 s"),
        ("raise", 20, ValueError, "no good"),
    ],
)
def test_each_kind_of_failure_has_its_error_and_the_next_call_works(sandbox, task, timeout_s, error, says):
    with pytest.raises(error, match=says):
        sandbox.submit(work, task, timeout_s=timeout_s).result()
    assert sandbox.submit(work, "done", timeout_s=60).result() == "well done"


def test_warnings_of_a_call_reach_the_caller_once(sandbox, caplog):
    assert sandbox.submit(work, "warn", timeout_s=60).result() == "well warn"
    assert sandbox.submit(work, "done", timeout_s=60).result() == "well done"
    assert caplog.messages == [f"a.ts: note {number}" for number in range(20)]


def test_each_error_has_its_own_reason():
    reasons = {kind.reason for kind in SandboxError.__subclasses__()}
    assert reasons == {"too_slow", "too_much_memory", "crashed"}


def test_a_cancelled_call_frees_its_process(sandbox):
    running = sandbox.submit(work, "sleep", timeout_s=60)
    time.sleep(0.5)
    assert running.cancel()
    with pytest.raises(CancelledError):
        running.result()
    assert sandbox.submit(work, "done", timeout_s=60).result(timeout=30) == "well done"


def test_processes_outlive_the_thread_that_made_the_sandbox():
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(processes=1, memory_bytes=2 << 30)))
    thread.start()
    thread.join()
    try:
        first = made[0].submit(os.getpid, timeout_s=20).result()
        assert made[0].submit(os.getpid, timeout_s=20).result() == first
    finally:
        made[0].close()


def test_processes_end_with_their_owner():
    """A process ends even during a call, because nobody is left who waits for the result."""
    code = (
        "import os, time\n"
        "from xactor.sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    sandbox = Sandbox(processes=1, memory_bytes=2 << 30)\n"
        "    print(sandbox.submit(os.getpid, timeout_s=60).result(), flush=True)\n"
        "    sandbox.submit(time.sleep, 60, timeout_s=90).result()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        time.sleep(0.5)
        owner.send_signal(signal.SIGKILL)
        child.wait(timeout=10)


class Deadly:
    """An object that kills its process when it is pickled, as the kernel may while a process sends a large result."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def killed_once(mark: Path) -> str:
    """Return after the first call, in which the process is killed from outside."""
    if mark.exists():
        return "done"
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_that_are_killed_while_idle_are_replaced(processes):
    sandbox = Sandbox(processes=processes, memory_bytes=2 << 30)
    try:
        for _ in range(2):
            first = sandbox.submit(os.getpid, timeout_s=60).result(timeout=60)
            os.kill(first, signal.SIGKILL)
            for _ in range(4):
                assert sandbox.submit(os.getpid, timeout_s=60).result(timeout=60) != first
        assert sandbox.fault is None
    finally:
        sandbox.close()


def test_a_call_whose_process_is_killed_is_tried_again(sandbox, tmp_path):
    assert sandbox.submit(killed_once, tmp_path / "mark", timeout_s=60).result(timeout=60) == "done"


def test_a_process_that_is_killed_while_it_sends_a_result_harms_no_other_call(sandbox):
    with pytest.raises(ProcessLost, match="killed in 2 attempts"):
        sandbox.submit(Deadly, timeout_s=60).result(timeout=60)
    assert sandbox.submit(work, "done", timeout_s=60).result(timeout=60) == "well done"


def test_errors_and_results_that_cannot_be_pickled_fail_their_own_call(sandbox):
    with pytest.raises(RuntimeError, match="Unpicklable: why"):
        sandbox.submit(raise_unpicklable, timeout_s=60).result(timeout=60)
    with pytest.raises(Exception, match="pickle"):
        sandbox.submit(threading.Lock, timeout_s=60).result(timeout=60)
    with pytest.raises(Exception, match="pickle"):
        sandbox.submit(work, threading.Lock(), timeout_s=60).result(timeout=60)
    assert sandbox.submit(work, "done", timeout_s=60).result(timeout=60) == "well done"


class Unpicklable(Exception):
    def __init__(self, one: str, other: str):
        super().__init__(one)


def raise_unpicklable() -> None:
    raise Unpicklable("why", "not")


def test_a_sandbox_whose_processes_cannot_start_says_why_and_recovers(tmp_path):
    sandbox = Sandbox(processes=1, memory_bytes=2 << 30, prepare=partial(os.stat, tmp_path / "missing"))
    try:
        with pytest.raises(ProcessLost, match="cannot start .FileNotFoundError"):
            sandbox.submit(os.getpid, timeout_s=60).result(timeout=60)
        assert "missing" in (sandbox.fault or "")
        (tmp_path / "missing").touch()
        deadline = time.monotonic() + 60
        while sandbox.fault and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sandbox.submit(os.getpid, timeout_s=60).result(timeout=60) != os.getpid()
    finally:
        sandbox.close()


def test_closing_cancels_calls_that_run_and_calls_that_wait():
    sandbox = Sandbox(processes=1, memory_bytes=2 << 30)
    calls = [sandbox.submit(time.sleep, 60, timeout_s=60) for _ in range(3)]
    time.sleep(0.5)
    sandbox.close()
    assert all(call.cancelled() for call in calls)
