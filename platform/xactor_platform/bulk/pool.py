"""Pools of actors that Ray Data feeds a piece of work at a time: their sizes, and how the pieces travel.

A piece travels pickled in one column: arrays of every size are safe there, and a stage's code names what it takes.
"""

import pickle
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import GetTimeoutError
from ray.util.annotations import RayDeprecationWarning

COLUMN = "work"
Spent = dict[str, float]  # seconds of actors' time, by stage


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Set the number of actors of one stage, and the resources of each.

    Raises:
        ValueError: the sizes contradict each other, or an actor has neither CPUs nor GPUs.
    """

    min: int = 1
    """Actors that start with the run, at least 1."""
    max: int = 4
    """Most actors. Ray Data adds actors while messages wait, and removes idle ones."""
    cpus: float = 0.5
    """CPUs of each actor. Fractions are allowed."""
    gpus: float = 0
    """GPUs of each actor. Fractions are allowed. Only stages that hold a model take them."""

    def __post_init__(self):
        if not 1 <= self.min <= self.max:
            raise ValueError(f"a pool needs 1 <= min <= max, got {self.min}..{self.max}")
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise ValueError(f"a pool's actors need CPUs or GPUs, got {self.cpus:g} and {self.gpus:g}")

    @property
    def min_cpus(self) -> float:
        """CPUs of the pool at its smallest size."""
        return self.min * self.cpus


def pack(work: Any) -> pa.Table:
    return pa.table({COLUMN: pa.array([pickle.dumps(work, protocol=5)], type=pa.large_binary())})


def unpack(table: pa.Table) -> Iterable[Any]:
    for cell in table[COLUMN]:
        yield pickle.loads(cell.as_buffer())


def nothing() -> pa.Table:
    """A table without a piece of work."""
    return pa.table({COLUMN: pa.array([], type=pa.large_binary())})


def added(spent: Spent, more: Spent) -> Spent:
    return {name: spent.get(name, 0.0) + more.get(name, 0.0) for name in {*spent, *more}}


def tried_twice() -> dict[str, Any]:
    """For actors: what dies with its worker is tried once more at once, not for ever as Ray Data would."""
    return {"max_restarts": -1, "max_task_retries": 1}


def results(tables: ray.data.Dataset) -> Generator[Any, None, None]:
    """What comes out of a pipeline, as it comes.

    Raises:
        TimeoutError: no nodes came with room for the pools' first actors.
    """
    try:
        for batch in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from unpack(batch)  # pyright: ignore[reportArgumentType]
    except GetTimeoutError as error:
        waited = f"{tables.context.wait_for_min_actors_s} s (start_timeout_s)"
        raise TimeoutError(
            f"the cluster had no room for the first actor of every pool within {waited}"
        ) from error


@contextmanager
def piecewise(start_timeout_s: int) -> Iterator[None]:
    """Ray Data's settings for what is built inside the block."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block a piece of work: the next is any actor's
    context.max_errored_blocks = (
        -1
    )  # a dead worker's work is missed, and tried again by who runs the pipeline
    context.wait_for_min_actors_s = start_timeout_s
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 has no other way to bound the retries of a pool's tasks than `tried_twice`, and warns of it.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
