"""Test the check of both deployments, which probes of the service's health ask for, without Ray."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from xactor_serving import replicas as module
from xactor_serving.replicas import Replicas


class Handle:
    """Stand in for the handle of a deployment.

    Args:
        answer: "answers", "is busy" (it answers too late) or "is dead" (the call fails).
    """

    def __init__(self, answer: str):
        self.calls, self._answer = 0, answer
        self.facts = SimpleNamespace(remote=self._facts)

    async def _facts(self) -> None:
        self.calls += 1
        if self._answer == "is busy":
            await asyncio.sleep(60)
        if self._answer == "is dead":
            raise ValueError("dead")


def check(motion: Handle, render: Handle) -> None:
    made: Any = Replicas
    asyncio.run(made(motion, render, call_timeout_s=1, retry_s=1).check())


@pytest.fixture(autouse=True)
def running(monkeypatch) -> dict[str, int]:
    """Return the numbers of running replicas that Serve reports, which a test may change."""
    running = {"motion": 1, "render": 1}
    monkeypatch.setattr(module, "_CHECK_S", 0.2)
    monkeypatch.setattr(module, "_running_replicas", running.__getitem__)
    return running


def test_both_deployments_must_answer():
    check(Handle("answers"), Handle("answers"))
    for motion, render in (("is dead", "answers"), ("answers", "is dead")):
        with pytest.raises(ValueError, match="dead"):
            check(Handle(motion), Handle(render))


def test_a_deployment_that_is_busy_is_healthy_while_serve_finds_it_so(running):
    check(Handle("answers"), Handle("is busy"))
    running["render"] = 0
    with pytest.raises(TimeoutError):
        check(Handle("answers"), Handle("is busy"))


def test_a_deployment_that_has_just_answered_is_not_asked_again():
    async def check_twice() -> None:
        motion, render = Handle("answers"), Handle("answers")
        made: Any = Replicas
        replicas = made(motion, render, call_timeout_s=1, retry_s=1)
        for _ in range(5):
            await replicas.check()
        assert (motion.calls, render.calls) == (1, 1)

    asyncio.run(check_twice())
