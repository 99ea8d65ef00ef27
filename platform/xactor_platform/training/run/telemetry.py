"""Export a training's metrics `xactor_train_*` to Prometheus. Ray's agents prefix the names with `ray_`."""

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray.util.metrics import Counter, Gauge

PREFIX = "xactor_train_"

# Name and help text of a metric, by the column of metrics.jsonl that the metric shows. Only rank 0 exports these
# metrics, so that a run has few time series.
COLUMNS = {
    "step": ("step", "Global steps done"),
    "epoch": ("epoch", "Epoch of the data's cursor"),
    "epoch_step": ("epoch_step", "Step of the data's cursor within its epoch"),
    "attempt": ("attempt", "How often the ranks were started"),
    "loss": ("loss", "Mean loss per frame in the last step"),
    "held_out_loss": ("held_out_loss", "Mean loss per held-out frame in the last evaluation"),
    "grad_norm": ("grad_norm", "Norm of the gradients before clipping"),
    "lr": ("learning_rate", "Highest learning rate of a group of parameters"),
    "frames_per_s": ("frames_per_second", "Frames per second of all ranks in the last step"),
    "padding": ("padding_ratio", "Fraction of the last step's frames that is padding"),
    "mfu": ("mfu_ratio", "FLOPs that the model needs, divided by the FLOPs that the GPUs could do"),
    "skipped": ("skipped_steps", "Steps of the run without an update, because a gradient was not finite"),
    "loss_spikes": ("loss_spikes", "Steps of the run whose loss was a spike"),
}


class Telemetry:
    """Export one rank's metrics to Prometheus.

    The figures of a step are gauges, which keep the value of the last step, because a step may take longer than the
    time between two scrapes. When a rank ends, its gauges end, and a panel shows a gap. Its counters stay.

    Args:
        run: name of the run, a label of every metric.
        rank: this rank.
        steps: number of global steps of the complete run.
    """

    def __init__(self, run: str, rank: int, steps: int):
        self._run_tags, self._rank_tags = {"run": run}, {"run": run, "rank": str(rank)}
        self._step_s = self._gauge("step_seconds", "Duration of a rank's last step", self._rank_tags)
        self._wait_s = self._gauge(
            "data_wait_seconds", "Time that a rank waited for data in its last step", self._rank_tags
        )
        self._memory = self._gauge(
            "memory_bytes",
            "Peak memory of a rank: of its GPU, or of its process if there is no GPU",
            self._rank_tags,
        )
        if rank:
            return
        self._columns = {
            column: self._gauge(name, description, self._run_tags)
            for column, (name, description) in COLUMNS.items()
        }
        self._gauge("steps", "Number of global steps of the complete run", self._run_tags).set(steps)
        self._frames = Counter(f"{PREFIX}frames_total", "Frames trained on, padding not counted", ("run",))
        self._bad = self._gauge("bad_samples", "Samples found bad when they were read", self._run_tags)
        self._save_s = self._gauge(
            "checkpoint_seconds",
            "How long the last checkpoint took, most of it while the training went on",
            self._run_tags,
        )
        self._blocked_s = self._gauge(
            "checkpoint_blocked_seconds",
            "How long the training waited for the last checkpoint",
            self._run_tags,
        )
        self._saved = self._gauge(
            "checkpoint_unix_seconds",
            "When the last checkpoint was finished, or the ranks started; a crash loses the steps after it",
            self._run_tags,
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
        self._frames.inc(row["frames"], self._run_tags)

    def bad(self, samples: int) -> None:
        """Export the number of bad (unusable) samples of all ranks since the ranks started. Rank 0 calls it."""
        self._bad.set(samples)

    def checkpoint(self, seconds: float, blocked_s: float) -> None:
        """Export the times of a checkpoint that was just finished. Rank 0 calls it.

        Args:
            seconds: seconds from the start of the checkpoint to its end.
            blocked_s: seconds that the training waited for the checkpoint.
        """
        self._save_s.set(seconds)
        self._blocked_s.set(blocked_s)
        self._saved.set(time.time())

    def _gauge(self, name: str, description: str, tags: dict[str, str]) -> Gauge:
        """Return a gauge whose values have the labels `tags`."""
        gauge = Gauge(PREFIX + name, description, tuple(tags))
        gauge.set_default_tags(tags)
        return gauge


def _peak_memory() -> int:
    """Return the peak memory since the process started, in bytes: of the GPU, or of the process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    # Linux gives ru_maxrss in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
