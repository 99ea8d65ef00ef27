"""Record the steps of a training: rank 0 writes the run's logs and prints progress."""

import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from xactor_platform.data.index import BadSample
from xactor_platform.training.engine import peak_flops
from xactor_platform.training.run.board import Board
from xactor_platform.training.run.clock import Clock
from xactor_platform.training.run.folder import BAD, METRICS, SAMPLES, RunFolder
from xactor_platform.training.run.health import Lag, Spikes, node_addresses
from xactor_platform.training.run.run_log import RunLog, last_attempts, read_metrics
from xactor_platform.training.run.saver import Saved
from xactor_platform.training.run.telemetry import Telemetry
from xactor_platform.training.run.trace import TraceOnDemand
from xactor_platform.training.train_config import StageConfig

PROGRESS_S = 5.0
"""Minimum seconds between two lines of progress. The last step and steps with an evaluation always print a line."""


class Recorder:
    """Record every step of a training in logs, metrics and lines of progress.

    Every rank has a recorder and exports its own times, but only rank 0 writes logs and prints progress. The recorder
    is a context manager, which closes the logs.

    Args:
        config: the configuration of the run.
        folder: the folder of the run.
        rank: this rank.
        flops_per_frame: FLOPs of the forward and the backward pass per frame; None if they are not known.
        first_step: number of global steps that earlier starts of the run have done.
    """

    def __init__(
        self,
        config: StageConfig,
        folder: RunFolder,
        rank: int,
        flops_per_frame: float | None,
        *,
        first_step: int,
    ):
        self._config, self._rank, self._first = config, rank, first_step
        log_names = (METRICS, BAD) + ((SAMPLES,) if config.train.log_samples else ())
        rows = read_metrics(folder) if rank == 0 else []
        # An attempt is one start of the ranks. Attempts of a run are counted from 1.
        self._attempt = max((row["attempt"] for row in rows), default=0) + 1
        self._spikes = Spikes(config.train.loss_spike, last_attempts(rows, first_step))
        self._lag = Lag(node_addresses())
        self._logs = {name: RunLog(folder, name) for name in log_names} if rank == 0 else {}
        self._telemetry = Telemetry(config.run.name, rank, config.train.steps)
        self._trace = TraceOnDemand(folder)
        self._board = Board(folder, first_step=first_step) if config.train.tensorboard and not rank else None
        self._flops_per_frame, self._peak = flops_per_frame, peak_flops()
        self._bad = 0
        self._bad_held_out: set[BadSample] = set()
        self._started = self._shown = time.perf_counter()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc) -> None:
        if self._board:
            self._board.close()
        for log in self._logs.values():
            log.close()
        # The trace is closed last, because writing an unfinished trace can fail.
        self._trace.close()

    def bad_samples(self, bad: Sequence[BadSample]) -> None:
        """Record the bad samples of all ranks in a step. A bad sample is unusable, for example not decodable."""
        if not bad or self._rank:
            return
        self._bad += len(bad)
        self._telemetry.bad(self._bad)
        for sample in bad:
            self._logs[BAD].write(vars(sample))

    def bad_held_out_samples(self, bad: Sequence[BadSample]) -> None:
        """Record the bad samples of all ranks in an evaluation. Each is recorded once, because it is read again."""
        self.bad_samples([sample for sample in bad if sample not in self._bad_held_out])
        self._bad_held_out.update(bad)

    def samples(self, step: int, mine: list[tuple[str, int, int]]) -> None:
        """Record which rank trained on which samples, if train.log_samples is set. All ranks must call it.

        Args:
            step: the global step, counted from 1.
            mine: this rank's samples: key of the clip, first frame in the clip, number of frames.
        """
        if not self._config.train.log_samples:
            return
        gathered: list[list[tuple[str, int, int]] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        if self._rank:
            return
        for rank, samples in enumerate(gathered):
            row = {"step": step, "attempt": self._attempt, "rank": rank, "samples": samples}
            self._logs[SAMPLES].write(row)

    def step(self, row: dict[str, Any], clock: Clock, own_s: list[float]) -> None:
        """Record a step in metrics.jsonl and in the exported metrics, and print a line of progress if one is due.

        Args:
            row: the step's row of metrics.jsonl. The times and further figures are added to it.
            clock: the clock of this rank, which has measured the step.
            own_s: seconds of the step that each rank spent without waiting for other ranks (`Clock.own_s`), [ranks].
        """
        self._telemetry.times(clock.step_s, clock.waited_s)
        if self._rank:
            return
        self._add_figures(row, clock)
        if lagging := self._lag.message(own_s):
            print(f"step {row['step']}: {lagging}", flush=True)
        self._logs[METRICS].write(row)
        self._telemetry.step(row)
        self._trace.step(row["step"])
        if self._board:
            self._board.step(row)
        self._print_progress(row)

    def checkpoint(self, saved: Saved) -> None:
        """Record that a checkpoint was finished. Rank 0 calls it."""
        self._telemetry.checkpoint(saved.seconds, saved.blocked_s)

    def flush(self) -> None:
        """Write all rows so far to the storage."""
        if self._board:
            self._board.flush()
        for log in self._logs.values():
            log.flush()

    def _add_figures(self, row: dict[str, Any], clock: Clock) -> None:
        """Add the step's times, MFU, number of spikes and attempt to its row. Print a line if the loss is a spike.

        MFU (model FLOPs utilization) is the FLOPs that the model needs, divided by the FLOPs that the GPUs could do.
        """
        frames_per_s = row["frames"] / clock.step_s
        row["step_s"] = round(clock.step_s, 4)
        row["data_wait_s"] = round(clock.waited_s, 4)
        row["frames_per_s"] = round(frames_per_s, 1)
        row["mfu"] = None
        if self._flops_per_frame and self._peak:
            row["mfu"] = frames_per_s * self._flops_per_frame / (self._peak * dist.get_world_size())
        if self._spikes.add(row["loss"], row.get("phase")):
            print(
                f"step {row['step']}: loss {row['loss']:.4f} is a spike, the median is {self._spikes.median:.4f}",
                flush=True,
            )
        row["loss_spikes"] = self._spikes.count
        row["attempt"] = self._attempt

    def _print_progress(self, row: dict[str, Any]) -> None:
        """Print a line of progress if one is due; see PROGRESS_S."""
        now, steps = time.perf_counter(), self._config.train.steps
        if now - self._shown < PROGRESS_S and "held_out_loss" not in row and row["step"] != steps:
            return
        self._shown = now
        pace_s = (now - self._started) / (row["step"] - self._first)
        left_s = int(pace_s * (steps - row["step"]))
        held_out = f"  held-out {row['held_out_loss']:.4f}" if "held_out_loss" in row else ""
        phase = f"{row['phase']}  " if "phase" in row else ""
        print(
            f"step {row['step']}/{steps}  {phase}epoch {row['epoch']}  loss {row['loss']:.4f}{held_out}  "
            f"lr {row['lr']:.1e}  {row['frames_per_s']:,.0f} frames/s  "
            f"data wait {row['data_wait_s'] / row['step_s']:.0%}  {left_s // 60}:{left_s % 60:02d} left",
            flush=True,
        )
