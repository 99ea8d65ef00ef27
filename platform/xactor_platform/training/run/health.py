"""Watch over a training: report spikes of the loss, ranks that lag, and ranks that do not join a collective.

A rank is one worker process of a training.
"""

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import ray.util
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from xactor_platform.training.run.endings import CollectiveTimeout, OutOfMemory

SPIKE_STEPS = 50
"""Number of previous losses whose median a loss is compared with."""

MIN_SPIKE_STEPS = 10
"""Minimum number of previous losses. With fewer losses, none is a spike, because losses change fast at the start."""

LAG = 2.0
"""Factor, > 1. A rank lags if its own time is more than this factor times the median of the other ranks' own times. The
own time is the time of a step without waiting for other ranks."""

LAG_STEPS = 20
"""Number of the last steps over which each rank's own time is averaged."""

LAG_MESSAGE_S = 60.0
"""Seconds between two messages about a rank that lags."""

ROLL_CALL_S = 20.0
"""Seconds in which every rank must answer after a collective timed out."""


class Spikes:
    """Count spikes of the loss. They are reported, but have no effect on the training.

    A spike is a loss far above the median of the previous losses of the same phase.

    Args:
        factor: a loss above this factor times the median is a spike.
        rows: the rows of metrics.jsonl for the steps that are done, so that a resumed run continues the count.
    """

    def __init__(self, factor: float, rows: Iterable[dict[str, Any]] = ()):
        self._factor, self.count = factor, 0
        self._losses: deque[float] = deque(maxlen=SPIKE_STEPS)
        self._phase: str | None = None
        for row in rows:
            self.count = row.get("loss_spikes", self.count)
            self._enter_phase(row.get("phase"))
            self._add_finite(row["loss"])

    def add(self, loss: float, phase: str | None = None) -> bool:
        """Add the loss of a step, and return whether it is a spike.

        Args:
            loss: the mean loss per frame.
            phase: the current phase, for a training whose phases have different losses.
        """
        self._enter_phase(phase)
        is_spike = False
        if len(self._losses) >= MIN_SPIKE_STEPS:
            # `not <=` rather than `>`, so that NaN is a spike too.
            is_spike = not loss <= self._factor * self.median
        self.count += is_spike
        self._add_finite(loss)
        return is_spike

    @property
    def median(self) -> float:
        """Return the median of the last SPIKE_STEPS losses of the phase."""
        return median(self._losses)

    def _enter_phase(self, phase: str | None) -> None:
        """Forget the losses of the previous phase if `phase` is a new one."""
        if phase != self._phase:
            self._losses.clear()
        self._phase = phase

    def _add_finite(self, loss: float) -> None:
        """Add a loss to the losses that the median is computed from, unless it is NaN or infinite."""
        if loss < float("inf"):
            self._losses.append(loss)


class Lag:
    """Find a rank that keeps the others waiting.

    The ranks are compared by their own times (`Clock.own_s`): the seconds of a step without waiting for other ranks.

    Args:
        nodes: the address of each rank's node.
    """

    def __init__(self, nodes: Sequence[str]):
        self._nodes = nodes
        self._steps: deque[list[float]] = deque(maxlen=LAG_STEPS)
        self._reported_s = float("-inf")

    def message(self, own_s: list[float]) -> str | None:
        """Add the own times of a step. If a rank lags, return a line that names it, at most once a minute.

        Args:
            own_s: own time of each rank in seconds, [ranks].
        """
        self._steps.append(own_s)
        if len(own_s) < 2 or len(self._steps) < LAG_STEPS:
            return None
        if time.monotonic() - self._reported_s < LAG_MESSAGE_S:
            return None
        means = [sum(times) / len(times) for times in zip(*self._steps, strict=True)]
        slowest = max(range(len(means)), key=means.__getitem__)
        others = median(mean for rank, mean in enumerate(means) if rank != slowest)
        if means[slowest] <= LAG * others:
            return None
        self._reported_s = time.monotonic()
        return (
            f"rank {slowest} on {self._nodes[slowest]} keeps the others waiting: it takes {means[slowest]:.3f} s "
            f"of each step by itself, the others {others:.3f} s"
        )


def node_addresses() -> list[str]:
    """Return the address of each rank's node. All ranks must call it."""
    addresses: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(addresses, ray.util.get_node_ip_address())
    return addresses


class Watch:
    """Replace torch's errors that end a rank's training with errors that state the cause.

    If a collective times out or a connection closes, the ranks that waited hold a roll call: a barrier in a process
    group that is used for nothing else. The error of this barrier names a rank that does not answer.

    Args:
        timeout_s: seconds after which a collective fails.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._roll_call_group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=ROLL_CALL_S))
        self.step = 0
        """The current step, counted from 1; 0 before the first step."""

    def limit_groups(self) -> None:
        """Set the timeout of all process groups except the roll call's.

        Call it after the engine is made, because the engine makes groups with torch's default timeout, 30 minutes.
        """
        for group in list(distributed_c10d._world.pg_map):
            if group is not self._roll_call_group:
                distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout_s), group)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Replace errors that torch raises inside the block with OutOfMemory or CollectiveTimeout.

        Other errors stay as they are.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(self._memory_message("GPU", error)) from error
        except MemoryError as error:
            raise OutOfMemory(self._memory_message("host", error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "not enough memory" in str(error):
                raise OutOfMemory(self._memory_message("host", error)) from error
            if re.search(r"timed?[ -]?out", str(error), re.IGNORECASE):
                waited = f"waited {self._timeout_s:g} s (scale.collective_timeout_s)"
                raise CollectiveTimeout(self._roll_call_message(waited)) from error
            # gloo closes the connections of the rank whose collective times out first. This rank must join that rank's
            # roll call. Otherwise this rank would be named as the missing one.
            if "Connection closed by peer" in str(error):
                lost = "lost its connection to another rank"
                raise CollectiveTimeout(self._roll_call_message(lost)) from error
            raise

    def _memory_message(self, which: str, error: BaseException) -> str:
        return (
            f"rank {dist.get_rank()} has no {which} memory left in step {self.step}: "
            f"lower --train.budget-frames or raise --scale.ranks ({str(error).splitlines()[0] if str(error) else ''})"
        )

    def _roll_call_message(self, happened: str) -> str:
        """Hold the roll call, and return a message that names the ranks that do not answer.

        Args:
            happened: What happened to this rank.
        """
        missing = "another rank"
        try:
            dist.monitored_barrier(
                self._roll_call_group,
                timeout=timedelta(seconds=ROLL_CALL_S),
                wait_all_ranks=dist.get_rank() == 0,
            )
            missing = "none: all ranks answered afterwards, so one was late or failed"
        except RuntimeError as error:
            named = re.search(r"Ranks? ([\d, ]+) failed to pass|from rank (\d+)", str(error))
            if named:
                # torch lists the ranks with or without spaces: leave one space after each comma.
                missing = f"rank {named[1] or named[2]}".replace(",", ", ").replace("  ", " ").strip()
        return f"rank {dist.get_rank()} {happened} in step {self.step}; missing: {missing}"
