"""Test that too many bad samples or steps without an update stop a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from xactor_platform.data.index import BadSample
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.run.limits import Limits


def limits(**bounds) -> Limits:
    config: Any = SimpleNamespace(
        data=SimpleNamespace(max_bad_fraction=bounds.get("max_bad_fraction", 0.0)),
        train=SimpleNamespace(max_skipped_steps=bounds.get("max_skipped_steps", 0)),
    )
    return Limits(config)


def step(samples: int) -> Any:
    return SimpleNamespace(micro_batches=[SimpleNamespace(row=range(samples))])


def test_bad_samples_are_counted_against_all_that_were_read():
    bad = BadSample("clip", "train-000000.tar", "holds NaN or infinity")
    counted = limits(max_bad_fraction=0.25)
    counted.check_samples([bad], step(4))
    counted.check_samples([], step(3))
    with pytest.raises(TrainingStopped, match=r"2 of 7 samples .* \(0\.25\) allows; the last: .*clip"):
        counted.check_samples([bad], step(0))
    with pytest.raises(TrainingStopped, match="1 of 100 samples read so far are bad"):
        limits().check_samples([bad], step(100))


def test_bad_held_out_samples_are_bounded_too():
    bad = BadSample("clip", "test-000000.tar", "motion.npy differs from its checksum")
    limits().check_held_out([], 0)
    limits(max_bad_fraction=0.5).check_held_out([bad], 2)
    with pytest.raises(
        TrainingStopped, match=r"1 of 20 held-out samples are bad, .* \(0\) allows; the last: .*clip"
    ):
        limits().check_held_out([bad], 20)


def test_steps_without_an_update_are_bounded():
    counted = limits(max_skipped_steps=3)
    counted.check_updates(9, 3)
    with pytest.raises(
        TrainingStopped, match=r"4 steps .*max_skipped_steps \(3\) allows; the last is step 10"
    ):
        counted.check_updates(10, 4)
