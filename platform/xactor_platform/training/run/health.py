"""Whether a training is well: spikes of its loss, steps that had to be skipped, ranks that lag or do not come."""

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

SPIKE_STEPS = 50  # whose median a loss is held against
SPIKE_LEAST = 10  # before that, everything changes
LAG = 2.0  # times what the others take
LAG_STEPS = 20  # averaged over
LAG_SAY_S = 60.0
ROLL_CALL_S = 20.0


class Spikes:
    """Counts losses that stand out among those of their phase. They alter nothing: what is seen is logged.

    Args:
        rows: what metrics.jsonl has of the steps done, so that a run that goes on counts on.
    """

    def __init__(self, factor: float, rows: Iterable[dict[str, Any]] = ()):
        self._factor, self.count = factor, 0
        self._losses: deque[float] = deque(maxlen=SPIKE_STEPS)
        self._phase: str | None = None
        for row in rows:
            self.count = row.get("loss_spikes", self.count)
            self._enter(row.get("phase"))
            self._note(row["loss"])

    def seen(self, loss: float, phase: str | None = None) -> bool:
        """Whether it stands out.

        Args:
            phase: of a training whose loss means something else in each.
        """
        self._enter(phase)
        usual = median(self._losses) if len(self._losses) >= SPIKE_LEAST else None
        spike = usual is not None and not loss <= self._factor * usual  # NaN is one too
        self.count += spike
        self._note(loss)
        return spike

    @property
    def usual(self) -> float:
        return median(self._losses)

    def _enter(self, phase: str | None) -> None:
        if phase != self._phase:
            self._losses.clear()
        self._phase = phase

    def _note(self, loss: float) -> None:
        if loss < float("inf"):
            self._losses.append(loss)


class Lag:
    """Names a rank that keeps the others waiting, by the time that each spends on its own in a step.

    Args:
        places: of each rank: the address of its node.
    """

    def __init__(self, places: Sequence[str]):
        self._places = places
        self._steps: deque[list[float]] = deque(maxlen=LAG_STEPS)
        self._said_s = float("-inf")

    def found(self, own_s: list[float]) -> str | None:
        """What to say of a step's seconds, [ranks], if anything; at most once a minute."""
        self._steps.append(own_s)
        if len(own_s) < 2 or len(self._steps) < LAG_STEPS or time.monotonic() - self._said_s < LAG_SAY_S:
            return None
        means = [sum(times) / len(times) for times in zip(*self._steps, strict=True)]
        slowest = max(range(len(means)), key=means.__getitem__)
        others = median(mean for rank, mean in enumerate(means) if rank != slowest)
        if means[slowest] <= LAG * others:
            return None
        self._said_s = time.monotonic()
        return (
            f"rank {slowest} on {self._places[slowest]} keeps the others waiting: it takes {means[slowest]:.3f} s "
            f"a step for itself, the others {others:.3f} s"
        )


def places() -> list[str]:
    """The address of each rank's node; on all ranks alike."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, ray.util.get_node_ip_address())
    return found


class TrainingStopped(ValueError):
    """The run cannot go on, and every rank knows it: nothing to retry."""


class CollectiveTimeout(RuntimeError):
    """Ranks did not come to where the others waited; the message names them."""


class OutOfMemory(RuntimeError):
    """A rank has no memory left."""


class Watch:
    """Gives what ends a rank's training a name.

    Ranks that wait in vain for another in a collective call the roll, over connections of their own, so that the one
    that does not answer is named.
    """

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._roll: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=ROLL_CALL_S))
        self.step = 0  # the one under way, from 1

    def cover(self) -> None:
        """Once the engine has made its groups: they too wait no longer. Torch gives each new group 30 minutes."""
        for group in list(distributed_c10d._world.pg_map):
            if group is not self._roll:
                distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout_s), group)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(self._no_memory("GPU", error)) from error
        except MemoryError as error:
            raise OutOfMemory(self._no_memory("host", error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "not enough memory" in str(error):
                raise OutOfMemory(self._no_memory("host", error)) from error
            if re.search(r"timed?[ -]?out", str(error), re.IGNORECASE):
                raise CollectiveTimeout(self._late()) from error
            raise

    def _no_memory(self, which: str, error: BaseException) -> str:
        return (
            f"rank {dist.get_rank()} has no {which} memory left in step {self.step}: "
            f"lower --train.budget-frames or raise --scale.ranks ({str(error).splitlines()[0] if str(error) else ''})"
        )

    def _late(self) -> str:
        missing = "another rank"
        try:
            dist.monitored_barrier(
                self._roll, timeout=timedelta(seconds=ROLL_CALL_S), wait_all_ranks=dist.get_rank() == 0
            )
            missing = "no rank for good: all answered afterwards, one came late"
        except RuntimeError as error:
            named = re.search(r"Ranks? ([\d, ]+) failed to pass|from rank (\d+)", str(error))
            if named:
                missing = f"rank {named[1] or named[2]}".replace(",", ", ").replace("  ", " ").strip()
        return (
            f"rank {dist.get_rank()} waited {self._timeout_s:g} s (scale.collective_timeout_s) in step {self.step}; "
            f"missing: {missing}"
        )
