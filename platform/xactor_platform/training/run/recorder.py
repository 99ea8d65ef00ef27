"""What a rank writes down of its steps, and what it shows as it goes."""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from xactor_platform.data.index import BadSample
from xactor_platform.data.plan import Step
from xactor_platform.training.config import StageConfig
from xactor_platform.training.engine import peak_flops
from xactor_platform.training.run.board import Board
from xactor_platform.training.run.folder import BAD, METRICS, SAMPLES, RunFolder, RunLog
from xactor_platform.training.run.health import Lag, Spikes, TrainingStopped, places
from xactor_platform.training.run.lease import LeaseLost, is_held
from xactor_platform.training.run.saver import Saved
from xactor_platform.training.run.telemetry import Telemetry
from xactor_platform.training.run.trace import TraceOnDemand

PROGRESS_S = 5.0  # between progress lines


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step gave.

    loss: a frame of all ranks; bad, samples: this rank's; frames, bad_anywhere: counted on all. notices: rank 0's, from
    outside. own_s: what each rank took for itself, [ranks].
    """

    loss: float
    frames: int
    bad: list[BadSample]
    bad_anywhere: int
    samples: list[tuple[str, int, int]]
    notices: int
    own_s: list[float]


class Clock:
    """How long a step takes, how much of it is waiting for data, and how much a rank takes for itself."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"

    def begin(self) -> None:
        self._begun, self.waited_s, self._computed_s = time.perf_counter(), 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting."""
        begun = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Time inside, of forward passes, which wait for no other rank, counts as the rank's own."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._computed_s += time.perf_counter() - begun
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)

    def own_s(self) -> float:
        """Waiting for data and forward passes, once all of the step is on its way."""
        if self._events:
            self._events[-1][1].synchronize()
        gpu_ms = sum(first.elapsed_time(last) for first, last in self._events)
        return self.waited_s + self._computed_s + gpu_ms / 1000

    def end(self) -> None:
        self.step_s = time.perf_counter() - self._begun


class Recorder:
    """Rank 0 writes down what happened in every step, and shows it as it goes."""

    def __init__(self, config: StageConfig, rank: int, flops_per_frame: float | None, *, first_step: int):
        self._config, self._rank, self._first = config, rank, first_step
        folder = RunFolder(config.run.storage, config.run.name, config.run.storage_timeout_s)
        wanted = (METRICS, BAD) + ((SAMPLES,) if config.train.log_samples else ())
        rows = folder.read_lines(METRICS) if rank == 0 else []
        self._attempt = max((row.get("attempt", 0) for row in rows), default=0) + 1
        self._spikes = Spikes(config.train.loss_spike, last_attempts(rows, first_step))
        self._lag = Lag(places())
        token = [uuid.uuid4().hex]
        dist.broadcast_object_list(token, src=0)
        self.token = token[0]  # of this start of the ranks
        self._folder = folder
        self._logs = {name: RunLog(folder, name) for name in wanted} if rank == 0 else {}
        self._telemetry = Telemetry(config.run.name, rank, config.train.steps)
        self._trace = TraceOnDemand(folder)
        self._board = Board(folder, first_step=first_step) if config.train.tensorboard and not rank else None
        self._flops_per_frame, self._peak = flops_per_frame, peak_flops()
        self._bad = self._seen = 0
        self._started = self._shown = time.perf_counter()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc) -> None:
        self._trace.close()
        if self._board:
            self._board.close()
        for log in self._logs.values():
            log.close()

    def bad(self, result: StepResult, step: Step) -> None:
        """Count the samples found bad when they were read; past the bound the run stops, on all ranks alike."""
        self._seen += sum(len(batch.row) for batch in step.micro_batches)
        self._bad += result.bad_anywhere
        if not result.bad_anywhere:
            return
        named: list[list[BadSample] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(named, result.bad)
        rows = [sample for rank in named for sample in rank or []]
        if BAD in self._logs:
            self._telemetry.bad(self._bad)
            for sample in rows:
                self._logs[BAD].write(vars(sample))
        bound = self._config.data.max_bad_fraction
        if self._bad > bound * self._seen:
            raise TrainingStopped(
                f"{self._bad} of {self._seen} samples read so far are bad, more than data.max_bad_fraction "
                f"({bound:g}) allows; the last: {rows[-1]}"
            )

    def samples(self, step: int, mine: list[tuple[str, int, int]]) -> None:
        """With train.log_samples: who trained on what."""
        if not self._config.train.log_samples:
            return
        gathered: list[list[tuple[str, int, int]] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        if SAMPLES in self._logs:
            for rank, samples in enumerate(gathered):
                row = {"step": step, "attempt": self._attempt, "rank": rank, "samples": samples}
                self._logs[SAMPLES].write(row)

    def step(self, row: dict[str, Any], clock: Clock, own_s: list[float]) -> None:
        """A line of metrics.jsonl: `row` and the step's times; now and then a line of progress.

        Past the bound of steps without an update the run stops, on all ranks alike.
        """
        self._telemetry.times(clock.step_s, clock.waited_s)
        if self._rank == 0:
            self._write(row, clock, own_s)
        bound = self._config.train.max_skipped_steps
        if row["skipped"] > bound:
            raise TrainingStopped(
                f"{row['skipped']} steps had a gradient that is not finite, more than train.max_skipped_steps "
                f"({bound}) allows; the last is step {row['step']}"
            )

    def _write(self, row: dict[str, Any], clock: Clock, own_s: list[float]) -> None:
        rate = row["frames"] / clock.step_s
        ranks = dist.get_world_size()
        row["step_s"] = round(clock.step_s, 4)
        row["data_wait_s"] = round(clock.waited_s, 4)
        row["frames_per_s"] = round(rate, 1)
        row["mfu"] = None
        if self._flops_per_frame and self._peak:
            row["mfu"] = rate * self._flops_per_frame / (self._peak * ranks)
        if self._spikes.seen(row["loss"], row.get("phase")):
            print(
                f"step {row['step']}: loss {row['loss']:.4f} stands out, usual is {self._spikes.usual:.4f}",
                flush=True,
            )
        row["loss_spikes"] = self._spikes.count
        row["attempt"] = self._attempt
        if lagging := self._lag.found(own_s):
            print(f"step {row['step']}: {lagging}", flush=True)
        self._logs[METRICS].write(row)
        self._telemetry.step(row)
        self._trace.step(row["step"])
        if self._board:
            self._board.step(row)
        self._show(row)

    def before_commit(self, holder: str) -> None:
        """Rank 0, before a checkpoint counts: the rows up to it are in the storage, and the run is still ours.

        A rank that a crash of its driver left behind must not write into the run that goes on without it.
        """
        self.flush()
        if not is_held(self._folder, holder):
            raise LeaseLost(f"run {self._folder.uri} was taken over by another driver: this one ends")

    def committed(self, saved: Saved) -> None:
        """Rank 0: a checkpoint has come to exist."""
        self._telemetry.checkpoint(saved.seconds, saved.blocked_s)

    def flush(self) -> None:
        if self._board:
            self._board.flush()
        for log in self._logs.values():
            log.flush()

    def _show(self, row: dict[str, Any]) -> None:
        now, steps = time.perf_counter(), self._config.train.steps
        if now - self._shown < PROGRESS_S and "held_out_loss" not in row and row["step"] != steps:
            return
        self._shown = now
        pace = (now - self._started) / (row["step"] - self._first)
        left = int(pace * (steps - row["step"]))
        held_out = f"  held-out {row['held_out_loss']:.4f}" if "held_out_loss" in row else ""
        phase = f"{row['phase']}  " if "phase" in row else ""
        print(
            f"step {row['step']}/{steps}  {phase}epoch {row['epoch']}  loss {row['loss']:.4f}{held_out}  "
            f"lr {row['lr']:.1e}  {row['frames_per_s']:,.0f} frames/s  "
            f"data wait {row['data_wait_s'] / row['step_s']:.0%}  {left // 60}:{left % 60:02d} left",
            flush=True,
        )


def last_attempts(rows: Iterable[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Of rows of metrics.jsonl those that count, one for each of the first `steps` steps: the last attempt's."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["step"] <= steps and row["attempt"] >= by_step.get(row["step"], row)["attempt"]:
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]
