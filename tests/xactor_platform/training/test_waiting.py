"""Test that SIGTERM ends a training whose ranks wait for a busy cluster."""

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from small_run import config_of

from xactor_platform.cluster.capacity import has_placement
from xactor_platform.training import launch
from xactor_platform.training.launch import train
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.lease import LEASE
from xactor_platform.training.run.notices import ASK


@ray.remote
class Occupant:
    """Hold CPUs, so that no rank can start."""

    def ready(self) -> None:
        """Do nothing. The answer shows that the CPUs are held."""


@pytest.mark.cluster
def test_sigterm_ends_a_training_whose_ranks_wait_for_a_busy_cluster(ray_cluster, shards, tmp_path, capsys):
    occupant = Occupant.options(num_cpus=ray.available_resources()["CPU"]).remote()
    ray.get(occupant.ready.remote())
    ended = threading.Event()

    def send_when_waiting() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not ended.is_set():
            groups = ray.util.placement_group_table().values()
            if any(group["state"] == "PENDING" for group in groups):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.2)

    sender = threading.Thread(target=send_when_waiting)
    sender.start()
    begun = time.monotonic()
    try:
        result = train(config_of(shards, tmp_path, "waits"))
    finally:
        ended.set()
        ray.kill(occupant)
        sender.join()
    assert (result.stopped, result.last) == ("SIGTERM", {"step": 0})
    # Ray Train itself would try again after a minute, for ever.
    assert time.monotonic() - begun < 55
    # No rank can start any more, though the CPUs are free now.
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}
    folder = RunFolder(str(tmp_path), "waits")
    assert folder.read_text(ASK) is None
    assert folder.read_text(LEASE) is None


@pytest.mark.parametrize(
    ("signals", "placed", "ends"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_only_a_signal_ends_a_controller_and_only_while_its_ranks_have_no_place(
    monkeypatch, signals, placed, ends
):
    ended, signalled = [], threading.Event()
    monkeypatch.setattr(launch, "_LOOK_S", 0.01)
    monkeypatch.setattr(launch, "has_placement", lambda: placed)
    monkeypatch.setattr(launch.ray, "kill", ended.append)
    trainer: Any = SimpleNamespace(controller=None)
    if signals:
        signalled.set()
    with launch._ending_if_waiting(trainer, signalled):
        time.sleep(0.1)
        # The controller does not exist yet.
        assert not ended
        trainer.controller = "controller"
        time.sleep(0.3)
    assert ended == (["controller"] if ends else [])


def test_a_placement_group_counts_for_the_job_that_made_it_once_it_is_placed(monkeypatch):
    """Replace Ray's answers, because another job's groups and pending ones need a busy cluster."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "0a000000"))
    for groups, expected in (
        ({}, False),
        ({"aa0b000000": {"state": "CREATED"}, "bb0a000000": {"state": "PENDING"}}, False),
        ({"aa0b000000": {"state": "CREATED"}, "bb0a000000": {"state": "CREATED"}}, True),
        ({"bb0a000000": {"state": "REMOVED"}}, False),
    ):
        monkeypatch.setattr(
            "xactor_platform.cluster.capacity.placement_group_table", lambda groups=groups: groups
        )
        assert has_placement() is expected
