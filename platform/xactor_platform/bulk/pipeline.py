"""Run messages through stages on Ray Data, retry lost messages, and track tasks that a driver starts on the results.

    messages -> map_batches(stage 1, its pool) -> map_batches(stage 2, its pool) -> ... -> results

Ray Data grows and shrinks each pool with the work. It pauses a stage whose output would not fit into the object store.
"""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
import ray.data
from ray.exceptions import GetTimeoutError
from ray.util.annotations import RayDeprecationWarning

from xactor_platform.bulk.message import pack, unpack
from xactor_platform.bulk.pool import Pool
from xactor_platform.bulk.stage import BatchStage

NODE_GROUP_LABEL = "ray.io/node-group"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Place one stage in a pipeline."""

    stage: type[BatchStage]
    """Class of the actors."""
    pool: Pool
    """Number of actors, and CPUs of each actor. The pool's GPUs are not used here, see `gpus`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the stage's constructor."""
    gpus: float = 0
    """GPUs of each actor."""
    batch: int = 1
    """Number of messages that an actor takes at a time, as one table."""
    max_in_flight: int | None = None
    """Maximum number of tables that one actor holds, in progress or waiting. None means Ray Data's default. If the
    actor dies twice, all these tables are lost."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Run messages through steps. Each message is a block of Ray Data, so any idle actor can take the next message."""

    steps: Sequence[Step]
    """Stages in order."""
    start_timeout_s: int
    """Seconds to wait for nodes with room for the minimum number of actors of every pool."""
    node_groups: bool = False
    """Whether each stage runs only on the nodes of its node group."""

    def run(self, messages: Sequence[Any]) -> Generator[Any, None, None]:
        """Yield results as they come, in any order.

        The result of a message is missing if an actor that worked on it died twice, or if a stage raised an error.
        Close the generator to stop the run early.

        Raises:
            TimeoutError: the cluster had no room in time for the minimum number of actors of every pool.
        """
        with _data_context(self.start_timeout_s):
            tables = self.source(messages)
            for step in self.steps:
                tables = self._map(tables, step, len(messages))
        try:
            for batch in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from unpack(batch)  # pyright: ignore[reportArgumentType]
        except GetTimeoutError as error:
            raise TimeoutError(
                f"the cluster had no room for the first actor of every pool within {self.start_timeout_s} s "
                f"(start_timeout_s)"
            ) from error

    def source(self, messages: Sequence[Any]) -> ray.data.Dataset:
        """Return the dataset that the first stage reads."""
        return ray.data.from_arrow([pack(message) for message in messages])

    def _map(self, tables: ray.data.Dataset, step: Step, message_count: int) -> ray.data.Dataset:
        group: dict[str, Any] = {}
        if self.node_groups:
            group["label_selector"] = {NODE_GROUP_LABEL: step.stage.node_group}
        return tables.map_batches(
            step.stage,  # pyright: ignore[reportArgumentType]
            fn_constructor_kwargs=step.arguments,
            batch_size=step.batch,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                # More actors than messages would be idle.
                min_size=min(step.pool.min, message_count),
                max_size=step.pool.max,
                max_tasks_in_flight_per_actor=step.max_in_flight,
            ),
            num_cpus=step.pool.cpus,
            num_gpus=step.gpus or None,
            ray_remote_args_fn=_retry_once,
            **group,
        )


def run_passes(
    messages: list[T],
    *,
    attempts: int,
    run_pass: Callable[[list[T], int], None],
    is_finished: Callable[[T], bool],
    say: Callable[[str], None] = lambda line: None,
) -> list[T]:
    """Run messages in several passes, because messages can be lost with actors.

    Each later pass runs only unfinished messages. Return the messages that no pass finished.

    Args:
        messages: all messages.
        attempts: maximum number of passes.
        run_pass: runs messages and records their results. It is called with the messages and the number of the pass,
            from 1.
        is_finished: returns whether a message needs no further pass.
        say: is called with a line of progress before each later pass.
    """
    left = messages
    for attempt in range(1, attempts + 1):
        if not left:
            break
        run_pass(left, attempt)
        left = [message for message in left if not is_finished(message)]
        if left and attempt < attempts:
            say(f"retrying {len(left)} of {len(messages)}, which were lost with their workers")
    return left


class PendingTasks(Generic[T]):
    """Hold the Ray tasks that a driver has started, each with the item that it works on, until they have ended."""

    def __init__(self):
        self._pending: dict[ray.ObjectRef, T] = {}

    def add(self, task: ray.ObjectRef, item: T) -> None:
        """Hold a task that works on an item."""
        self._pending[task] = item

    def ended(self, *, max_pending: int) -> Iterator[tuple[T, ray.ObjectRef]]:
        """Yield each item whose task has ended, with the task, and stop holding the task.

        Wait while more than `max_pending` tasks are pending.
        """
        while self._pending:
            must_wait = len(self._pending) > max_pending
            ended, _ = ray.wait([*self._pending], timeout=None if must_wait else 0)
            if not ended:
                return
            for task in ended:
                yield self._pending.pop(task), task


def _retry_once() -> dict[str, Any]:
    """Return Ray options that retry a task once after its actor died. By default, Ray Data retries without end."""
    return {"max_restarts": -1, "max_task_retries": 1}


@contextmanager
def _data_context(start_timeout_s: int) -> Iterator[None]:
    """Set Ray Data's options for datasets that are built inside the block."""
    context = ray.data.DataContext.get_current().copy()
    # In bytes. Every message is larger than one byte, so each message becomes its own block.
    context.target_max_block_size = 1
    # No limit, because a lost table is not an error: the driver runs its messages again in the next pass.
    context.max_errored_blocks = -1
    context.wait_for_min_actors_s = start_timeout_s
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # In Ray 2.60 only the deprecated `ray_remote_args_fn` bounds the retries of a pool's tasks.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
