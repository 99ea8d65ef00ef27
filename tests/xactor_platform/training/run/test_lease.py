"""Test that a run has one driver at a time, and that notices from outside reach it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray.train.v2.api.preemption import PreemptionInfo

from xactor_platform.training.run import lease as lease_module
from xactor_platform.training.run import notices
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.lease import LEASE, RunIsTaken, is_held, lease
from xactor_platform.training.run.notices import ASK, Notices, stopping_by_signal

HOLD = """
import sys, time
from xactor_platform.training.run.lease import lease
from xactor_platform.training.run.folder import RunFolder
with lease(RunFolder(sys.argv[1], "run")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    monkeypatch.setattr(lease_module, "STALE_S", 2.0)
    return RunFolder(str(tmp_path), "run")


def test_a_second_driver_is_refused_and_told_who_has_the_run(run):
    with lease(run) as holder:
        assert is_held(run, holder)
        with pytest.raises(
            RunIsTaken, match=rf"run .*/run is being trained by process {os.getpid()} on "
        ) as error:
            lease(run).__enter__()
        assert "another --run.name" in str(error.value)
        assert is_held(run, holder)
    assert run.read_text(LEASE) is None
    with lease(run):
        pass


def test_the_lease_of_a_killed_driver_on_this_machine_is_free(run, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunIsTaken, match=f"process {holder.pid} "):
        lease(run).__enter__()
    # Nobody waits for the killed process, so it stays a zombie. A zombie counts as ended.
    holder.kill()
    started = time.monotonic()
    with lease(run):
        assert time.monotonic() - started < 2.0
    holder.communicate()


def test_a_lease_of_another_machine_is_free_once_nobody_renews_it(run):
    other_lease = {
        "holder": "x",
        "host": "elsewhere",
        "boot": "y",
        "process": 7,
        "began": "1",
        "since": "then",
        "beats": 3,
    }
    run.write_text(LEASE, json.dumps(other_lease))
    started = time.monotonic()
    with lease(run) as holder:
        assert time.monotonic() - started >= 2.0
        assert is_held(run, holder)
    run.write_text(LEASE, json.dumps(other_lease))
    beating = threading.Timer(0.5, lambda: run.write_text(LEASE, json.dumps(other_lease | {"beats": 4})))
    beating.start()
    with pytest.raises(RunIsTaken, match="process 7 on elsewhere since then"):
        lease(run).__enter__()
    beating.join()


def test_a_lease_that_was_taken_over_is_not_taken_back(run):
    with lease(run) as holder:
        run.write_text(LEASE, json.dumps({"holder": "another"}))
        # Long enough for several renewals.
        time.sleep(0.3)
        assert not is_held(run, holder)
    assert json.loads(run.read_text(LEASE) or "") == {"holder": "another"}


def test_a_file_stops_a_run_and_only_rank_0_looks_for_it(run, tmp_path):
    first, second = Notices(run, 0), Notices(run, 1)
    assert not first.stop(first.flags())
    run.write_text(ASK, "")
    assert second.flags() == 0
    assert first.stop(first.flags())
    assert second.stop(first.flags())


def test_requests_to_stop_are_not_read_at_every_step(run, monkeypatch):
    asker, looks = Notices(run, 0), []
    asker._every_s = notices.LOOK_S
    monkeypatch.setattr(run, "read_text", lambda *_, **__: looks.append(1))
    assert [asker.flags() for _ in range(50)] == [0] * 50
    assert len(looks) <= 1


def test_a_node_that_is_about_to_leave_causes_one_checkpoint(run, monkeypatch, capsys):
    """Replace Ray's answers about nodes that will leave, which Ray gives only on clouds."""
    answers = [None, PreemptionInfo(None, {"n1": [2]}), PreemptionInfo(None, {"n1": [2]})]
    answers += [PreemptionInfo(None, {"n1": [2], "n2": [3]}), None]
    asked = iter(answers)
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: next(asked))
    rank_0 = Notices(run, 0)
    assert not rank_0.leaving(rank_0.flags())
    monkeypatch.setattr(notices, "ASK_RAY_S", 0.0)
    assert [rank_0.leaving(rank_0.flags()) for _ in answers] == [False, True, False, True, False]
    assert "nodes are about to leave (n1, n2): making a checkpoint" in capsys.readouterr().out


def test_the_first_sigterm_requests_a_stop_and_an_earlier_request_is_deleted(run):
    run.write_text(ASK, "of yesterday")
    before = signal.getsignal(signal.SIGTERM)
    with stopping_by_signal(run) as came:
        assert run.read_text(ASK) is None
        signal.raise_signal(signal.SIGTERM)
        assert came.is_set()
        deadline = time.monotonic() + 10
        while run.read_text(ASK) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.read_text(ASK) == "SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert run.read_text(ASK) is None


def test_the_second_sigterm_ends_the_process_at_once(tmp_path):
    code = """
import signal, sys, time
from xactor_platform.training.run.notices import stopping_by_signal
from xactor_platform.training.run.folder import RunFolder
with stopping_by_signal(RunFolder(sys.argv[1], "run")):
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: stopping after this step" in process.stdout.readline()
    deadline = time.monotonic() + 30
    while not (Path(tmp_path) / "run" / ASK).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.stdout.close()


def test_a_lease_that_is_read_in_part_is_read_again(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path), "run")
    with lease(folder) as holder:
        # The first two reads are incomplete, and the following ones are complete.
        read_text, incomplete = RunFolder.read_text, iter(['{"holder": "a', ""])
        monkeypatch.setattr(
            RunFolder, "read_text", lambda self, name: next(incomplete, read_text(self, name))
        )
        assert is_held(folder, holder)
        assert not is_held(folder, "another")
