"""Test that the error of a failed training names the rank that is the cause of the others' failures."""

import pytest

from xactor_platform.training.run.endings import CollectiveTimeout, OutOfMemory, root_cause


class WorkersFailed(Exception):
    """Hold the error of each rank, as Ray Train's error does."""

    def __init__(self, *failures: Exception):
        self.worker_failures = dict(enumerate(failures))


LOST = CollectiveTimeout("rank 0 lost its connection to another rank in step 7; missing: rank 1")


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        (
            (LOST, OutOfMemory("rank 1 has no host memory left")),
            "OutOfMemory: rank 1 has no host memory left",
        ),
        ((LOST, RuntimeError("Connection closed by peer")), f"CollectiveTimeout: {LOST}"),
        ((ValueError("first\nlast"), KeyError("x")), "ValueError: last"),
    ],
)
def test_the_rank_that_is_the_cause_is_named(failures, cause):
    assert root_cause(WorkersFailed(*failures)) == cause
