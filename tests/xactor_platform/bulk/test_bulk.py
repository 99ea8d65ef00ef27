"""Test stages that measure their time and fail single messages, tallies, passes, and a whole pipeline on real Ray."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from xactor_platform.bulk.message import Message, empty_table, pack, unpack
from xactor_platform.bulk.pipeline import PendingTasks, Pipeline, Step, run_passes
from xactor_platform.bulk.pool import Pool
from xactor_platform.bulk.stage import BatchStage, Stage
from xactor_platform.bulk.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Word(Message):
    """Ask for the letters of a word."""

    text: str
    """The word."""


@dataclass(frozen=True, kw_only=True)
class Result(Message):
    """Report a letter, or a word that failed."""

    finished: ClassVar[bool] = True

    text: str
    """The letter or word."""
    error: str = ""
    """Reason of a failure."""


class Spell(Stage):
    """Yield the letters of a word. `bad` fails, `deadly` kills the process, and `lost` raises an OSError."""

    name = "spell"

    def work(self, message):
        if message.text == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if message.text == "lost":
            raise OSError("a disk is gone")
        for letter in message.text:
            time.sleep(0.01)
            yield Result(text=letter)
        if message.text == "bad":
            raise ValueError("misspelt")

    def failed(self, message, error):
        if isinstance(error, OSError):
            raise error
        return Result(text=message.text, error=str(error))


def run_stage(stage: BatchStage, messages: list) -> list:
    table = pa.concat_tables([pack(message) for message in messages]) if messages else empty_table()
    return [message for made in stage(table) for message in unpack(made)]


def test_each_result_carries_its_seconds_once():
    first, second = run_stage(Spell(), [Word(text="ab", stage_s={"earlier": 3.0})])
    assert first.stage_s["earlier"] == 3.0
    assert second.stage_s.keys() == {"spell"}
    assert 0.01 <= first.stage_s["spell"] < 1
    assert 0.01 <= second.stage_s["spell"] < 1


def test_an_error_fails_only_its_own_message():
    made = run_stage(Spell(), [Word(text="bad"), Word(text="x")])
    assert [(m.text, m.error) for m in made] == [
        ("b", ""),
        ("a", ""),
        ("d", ""),
        ("bad", "misspelt"),
        ("x", ""),
    ]
    assert made[3].stage_s.keys() == {"spell"}
    with pytest.raises(OSError, match="a disk is gone"):
        run_stage(Spell(), [Word(text="lost")])


class SpellAtOnce(Spell):
    """Return the letters as a list instead of yielding them."""

    def work(self, message):
        return list(super().work(message))


def test_work_that_returns_a_list_is_timed_and_fails_only_its_message():
    made = run_stage(SpellAtOnce(), [Word(text="bad"), Word(text="x")])
    assert [(m.text, m.error) for m in made] == [("bad", "misspelt"), ("x", "")]
    assert all(m.stage_s["spell"] >= 0.01 for m in made)


def test_finished_messages_pass_through_unchanged():
    result = Result(text="whole", stage_s={"earlier": 1.0})
    assert run_stage(Spell(), [result]) == [result]
    (empty,) = list(Spell()(empty_table()))
    assert empty.num_rows == 0


def tally_of(total: int) -> Tally:
    return Tally(
        total=total,
        stages=("a", "b"),
        counters={"bulk_test_total": ("Items.", ("status", "kind"))},
        stage_seconds="bulk_test_stage_seconds_total",
        items_left="bulk_test_left",
        seconds_left="bulk_test_seconds_left",
    )


def test_a_tally_sums_by_labels_and_makes_a_bill():
    tally = tally_of(3)
    tally.add("bulk_test_total", status="made", kind="x")
    tally.add("bulk_test_total", 2, status="made", kind="y")
    tally.add("bulk_test_total", 0, status="failed", kind="y")
    assert tally.sum("bulk_test_total") == 3
    assert tally.sum("bulk_test_total", status="made") == 3
    assert tally.sum("bulk_test_total", kind="y") == 2
    assert tally.sum("bulk_test_total", status="failed") == 0
    tally.add_seconds({"b": 1.5})
    tally.add_seconds({"b": 1.5, "a": 1.0})
    bill = tally.bill(made=3)
    assert list(bill.as_json()) == ["made", "stage_s", "wall_s"]
    assert (bill.stage_s, bill.actor_s) == ({"a": 1.0, "b": 3.0}, 4.0)
    assert bill.stages_line() == "4.0 s of actors' time, by stage: a 1.0  b 3.0"


def test_a_tally_estimates_the_time_left_from_the_work_that_was_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tally = tally_of(4)
    assert tally.time_left() == ""
    tally.start_pace(40.0)
    now[0] += 30
    # This item took no work, so it says nothing about the pace.
    tally.finish_item(expected=10, done=0)
    assert tally.seconds_left is None
    tally.finish_item(expected=10, done=10)
    assert (tally.finished, tally.left) == (2, 2)
    assert tally.seconds_left == pytest.approx(60)
    assert tally.time_left() == ", 1:00 left"


def test_passes_repeat_lost_messages_and_return_those_that_stay_lost():
    finished: set[int] = set()
    passes: list[tuple[int, list[int]]] = []
    lines: list[str] = []

    def run_pass(messages, attempt):
        # The first pass can finish 0 and 1, the second 2 and 3, the third 4 and 5.
        passes.append((attempt, messages))
        finished.update(number for number in messages if number < 2 * attempt)

    arguments = {"run_pass": run_pass, "is_finished": finished.__contains__, "say": lines.append}
    assert run_passes([0, 1, 2, 3, 9], attempts=3, **arguments) == [9]
    assert passes == [(1, [0, 1, 2, 3, 9]), (2, [2, 3, 9]), (3, [9])]
    assert lines[0] == "retrying 3 of 5, which were lost with their workers"
    assert len(lines) == 2
    assert run_passes([], attempts=3, **arguments) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"min": 3, "max": 2}, "1 <= min <= max, got 3..2"),
        ({"cpus": 0}, "need CPUs or GPUs, each >= 0 and one > 0, got 0 and 0"),
    ],
)
def test_invalid_pools_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Pool(**sizes)


@pytest.mark.cluster
def test_a_pipeline_delivers_all_messages_except_lost_ones(ray_cluster):
    step = Step(stage=Spell, pool=Pool(max=1, cpus=0.2), max_in_flight=1)
    pipeline = Pipeline(steps=[step, step], start_timeout_s=300)
    words = [Word(text=text) for text in ("ab", "deadly", "bad", "lost", "c")]
    made = list(pipeline.run(words))
    assert sorted((m.text, m.error) for m in made) == [
        ("a", ""),
        ("a", ""),
        ("b", ""),
        ("b", ""),
        ("bad", "misspelt"),
        ("c", ""),
        ("d", ""),
    ]


@pytest.mark.cluster
def test_pending_tasks_are_handed_out_once(ray_cluster, tmp_path: Path):
    import ray

    @ray.remote(num_cpus=0)
    def wait_for(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.02)
        return path

    pending: PendingTasks[int] = PendingTasks()
    for number in range(2):
        pending.add(wait_for.remote(str(tmp_path / str(number))), number)
    assert list(pending.ended(max_pending=2)) == []
    (tmp_path / "1").touch()
    ((number, task),) = pending.ended(max_pending=1)
    assert (number, ray.get(task)) == (1, str(tmp_path / "1"))
    (tmp_path / "0").touch()
    assert [number for number, _ in pending.ended(max_pending=0)] == [0]
    assert list(pending.ended(max_pending=0)) == []
