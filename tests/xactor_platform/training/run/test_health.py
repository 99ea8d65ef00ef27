"""Test that spikes and lagging ranks are found, and that errors that end a rank are named."""

import multiprocessing
import re

import pytest
import torch
import torch.distributed as dist

from xactor_platform.training.run import health
from xactor_platform.training.run.endings import CollectiveTimeout, OutOfMemory
from xactor_platform.training.run.health import Lag, Spikes, Watch
from xactor_platform.training.run.run_log import last_attempts


def test_a_loss_that_stands_out_is_counted_and_a_slow_change_is_not():
    spikes = Spikes(3.0)
    assert not any(spikes.add(1.0 / (1 + step)) for step in range(60))
    assert spikes.add(0.5)
    assert spikes.add(float("nan"))
    assert spikes.add(float("inf"))
    assert not spikes.add(0.05)
    assert spikes.count == 3


def test_the_first_steps_have_no_spikes():
    spikes = Spikes(3.0)
    assert not any(spikes.add(loss) for loss in (1.0, 100.0, 0.01, 50.0))


def test_a_loss_is_compared_with_those_of_its_phase():
    phases = ["motion"] * 20 + ["frames"] * 20
    losses = [0.01] * 20 + [0.2] * 15 + [0.9] + [0.2] * 4
    spikes = Spikes(3.0)
    seen = [spikes.add(loss, phase) for loss, phase in zip(losses, phases, strict=True)]
    assert [step for step, spike in enumerate(seen) if spike] == [35]
    rows = [{"loss": loss, "phase": phase} for loss, phase in zip(losses, phases, strict=True)]
    assert not Spikes(3.0, rows[:20]).add(0.2, "frames")
    assert Spikes(3.0, rows[:35]).add(0.9, "frames")


def test_a_resumed_run_counts_the_same_spikes():
    losses = [1.0, 1.1, 0.9] * 6 + [9.0] + [1.0] * 5 + [8.0, 1.0, 7.0]
    rows, whole = [], Spikes(3.0)
    for step, loss in enumerate(losses, start=1):
        whole.add(loss)
        rows.append({"step": step, "attempt": 1, "loss": loss, "loss_spikes": whole.count})
    for done in (0, 5, 19, 24):
        again = Spikes(3.0, last_attempts(rows, done))
        for loss in losses[done:]:
            again.add(loss)
        assert again.count == whole.count
    assert whole.count == 3


def test_the_last_attempt_of_each_step_counts():
    steps_and_attempts = [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (4, 2), (4, 1)]
    rows = [{"step": step, "attempt": attempt} for step, attempt in steps_and_attempts]
    assert [(r["step"], r["attempt"]) for r in last_attempts(rows, 9)] == [(1, 1), (2, 2), (3, 2), (4, 2)]
    assert [r["step"] for r in last_attempts(rows, 2)] == [1, 2]


def test_a_rank_that_lags_is_named_with_its_address_once_a_minute():
    lag = Lag(["10.0.0.1", "10.0.0.1", "10.0.0.2"])
    messages = [lag.message([0.10, 0.11, 0.50]) for _ in range(3 * health.LAG_STEPS)]
    found = [line for line in messages if line]
    assert found == [
        "rank 2 on 10.0.0.2 keeps the others waiting: it takes 0.500 s of each step by itself, the others 0.105 s"
    ]
    assert messages.index(found[0]) == health.LAG_STEPS - 1


@pytest.mark.parametrize("own_s", [[0.1], [0.1, 0.19], [0.1, 0.15, 0.12, 0.18]])
def test_ranks_that_take_about_as_long_do_not_lag(own_s):
    lag = Lag(["here"] * len(own_s))
    assert not any(lag.message(own_s) for _ in range(100))


def run_rank(rank: int, ranks: int, meeting: str, absent: int, ready, finished, queue) -> None:
    """Run a rank that waits for the others in a collective, or stays away from it."""
    health.ROLL_CALL_S = 3.0
    from datetime import timedelta

    # Processes start at different times, and the bounds below are short.
    ready.wait(120)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=2)
    )
    watch = Watch(2)
    watch.step = 7
    # DeepSpeed makes its own groups too.
    group = dist.new_group()
    watch.limit_groups()
    if rank == absent:
        finished.wait(60)
        return
    try:
        with watch.naming():
            dist.all_reduce(torch.ones(1), group=group)
    except CollectiveTimeout as error:
        queue.put((rank, str(error)))
    finished.wait(60)


@pytest.mark.parametrize("absent", [0, 2])
def test_an_absent_rank_is_named(tmp_path, absent):
    context = multiprocessing.get_context("spawn")
    ready, finished, queue = context.Barrier(3), context.Event(), context.Queue()
    ranks = [
        context.Process(
            target=run_rank, args=(rank, 3, str(tmp_path / "ranks"), absent, ready, finished, queue)
        )
        for rank in range(3)
    ]
    for process in ranks:
        process.start()
    messages = dict(queue.get(timeout=120) for _ in range(2))
    finished.set()
    for process in ranks:
        process.join()
    for message in messages.values():
        # gloo closes the connections of the rank whose time is over first. The other rank may see that first.
        happened = r"(waited 2 s \(scale\.collective_timeout_s\)|lost its connection to another rank)"
        assert re.search(rf"{happened} in step 7; missing: ", message)
    assert any("waited 2 s" in message for message in messages.values())
    # Rank 0 names the rank that is absent. Without rank 0, the others name it.
    assert messages[0 if absent else 1].endswith(f"missing: rank {absent}")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield Watch(2)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "no GPU memory left in step 0",
        ),
        (MemoryError(), "no host memory left in step 0"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "no host memory left"),
    ],
)
def test_running_out_of_memory_is_named(alone, error, says):
    with pytest.raises(OutOfMemory, match=f"rank 0 has {says}.*lower --train.budget-frames"), alone.naming():
        raise error


def test_other_errors_are_raised_unchanged(alone):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised, alone.naming():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert type(raised.value) is RuntimeError


def test_a_rank_that_lost_its_connection_joins_the_roll_call(alone):
    says = (
        r"rank 0 lost its connection to another rank in step 0; missing: none: all ranks answered afterwards"
    )
    with pytest.raises(CollectiveTimeout, match=says), alone.naming():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41632")
