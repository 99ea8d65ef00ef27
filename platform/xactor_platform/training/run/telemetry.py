"""Export a training's metrics to Prometheus: `xactor_train_*`, which Ray's agents name `ray_xactor_train_*`."""

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray.util.metrics import Counter, Gauge

PREFIX = "xactor_train_"

# Name and help by column of metrics.jsonl. Rank 0 exports them for all ranks, so that a run has few series.
COLUMNS = {
    "step": ("step", "Global steps done"),
    "epoch": ("epoch", "Epoch of the data's cursor"),
    "epoch_step": ("epoch_step", "Step in its epoch of the data's cursor"),
    "attempt": ("attempt", "How often the ranks were started"),
    "loss": ("loss", "Loss of a frame, of the last step"),
    "held_out_loss": ("held_out_loss", "Loss of a held-out frame, of the last evaluation"),
    "grad_norm": ("grad_norm", "Norm of the gradients before clipping"),
    "lr": ("learning_rate", "Highest learning rate of a group of parameters"),
    "frames_per_s": ("frames_per_second", "Frames a second of all ranks, of the last step"),
    "padding": ("padding_ratio", "Share of the last step's frames that is padding"),
    "mfu": ("mfu_ratio", "FLOPs that the model needs over those that the GPUs could do"),
    "skipped": ("skipped_steps", "Steps of the run without an update: a gradient was not finite"),
    "loss_spikes": ("loss_spikes", "Steps of the run whose loss stood out"),
}


class Telemetry:
    """Export one rank's metrics.

    Gauges show the last step: a step may take longer than the time between two scrapes. A gauge ends with the rank,
    which a panel shows as a gap; a counter goes on.

    Args:
        run: name of the run, the label of every metric.
        rank: this rank.
        steps: global steps that the run is to do.
    """

    def __init__(self, run: str, rank: int, steps: int):
        self._run, self._mine = {"run": run}, {"run": run, "rank": str(rank)}
        self._step_s = self._gauge("step_seconds", "A rank's last step", self._mine)
        self._wait_s = self._gauge("data_wait_seconds", "A rank's waiting for data in it", self._mine)
        self._memory = self._gauge(
            "memory_bytes", "Most memory that a rank has held, of its GPU or else of its process", self._mine
        )
        if rank:
            return
        self._columns = {
            column: self._gauge(name, what, self._run) for column, (name, what) in COLUMNS.items()
        }
        self._gauge("steps", "Global steps that the run is to do", self._run).set(steps)
        self._frames = Counter(f"{PREFIX}frames_total", "Frames trained on, padding not counted", ("run",))
        self._bad = self._gauge("bad_samples", "Samples found bad when they were read", self._run)
        self._save_s = self._gauge(
            "checkpoint_seconds",
            "How long the last checkpoint took, most of it beside the training",
            self._run,
        )
        self._blocked_s = self._gauge(
            "checkpoint_blocked_seconds", "How long the training waited for the last checkpoint", self._run
        )
        self._saved = self._gauge(
            "checkpoint_unix_seconds",
            "When the last checkpoint was finished, or the ranks started; what came after would be lost",
            self._run,
        )
        self._saved.set(time.time())
        self.bad(0)

    def times(self, step_s: float, waited_s: float) -> None:
        """Export the times of a step. Every rank calls it after every step."""
        self._step_s.set(step_s)
        self._wait_s.set(waited_s)
        self._memory.set(_peak_memory())

    def step(self, row: Mapping[str, Any]) -> None:
        """Export a row of metrics.jsonl. Rank 0 calls it after every step."""
        for column, gauge in self._columns.items():
            if row.get(column) is not None:
                gauge.set(row[column])
        self._frames.inc(row["frames"], self._run)

    def bad(self, samples: int) -> None:
        """Export the number of samples found bad on all ranks since they started. Rank 0 calls it."""
        self._bad.set(samples)

    def checkpoint(self, seconds: float, blocked_s: float) -> None:
        """Export that a checkpoint was finished. Rank 0 calls it."""
        self._save_s.set(seconds)
        self._blocked_s.set(blocked_s)
        self._saved.set(time.time())

    def _gauge(self, name: str, what: str, tags: dict[str, str]) -> Gauge:
        gauge = Gauge(PREFIX + name, what, tuple(tags))
        gauge.set_default_tags(tags)
        return gauge


def _peak_memory() -> int:
    """Return the peak since the process started, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
