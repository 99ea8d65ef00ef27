"""Stream the planned micro-batches of one rank through Ray Data."""

import json
import logging
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.placement_group import placement_group_table

from xactor_platform.data.batch import Batch
from xactor_platform.data.index import Index
from xactor_platform.data.plan import Cursor, MicroBatch, PlanConfig, Step, planned_steps, rank_micro_batches
from xactor_platform.data.reading import Raw

# Bytes of micro-batches that one task reads. With fewer the overhead of tasks shows.
BLOCK_BYTES = 32 << 20
# Blocks of one rank that are read and not yet trained on.
BLOCKS_AHEAD = 8
# Blocks of one Ray Data execution. Its requests exist before it starts.
SEGMENT_BLOCKS = 256
# Minimal time between two iterations of Ray Data's scheduling loop.
SCHEDULE_S = 0.01

# Ray Data reports the end of each execution. A training has many, and the lines would break its progress line.
for _name in ("execution.streaming_executor", "progress"):
    logging.getLogger(f"ray.data._internal.{_name}").setLevel(logging.ERROR)


class Reader(Protocol):
    """Read micro-batches of one kind of corpus: latents or videos."""

    index: Index
    """The corpus."""
    bytes_per_frame: int
    """Approximate bytes of a planned frame as Ray Data transports it."""
    read: Callable[[Sequence[Any]], list[Raw]]
    """Reads the requests of a block in a Ray Data task. It is sent to the tasks, the index is not."""

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int) -> Any:
        """Return a small object that names what to read for a micro-batch.

        Args:
            micro_batch: from the plan.
            step: number of its global step in the run, from 0.
            epoch: number of its epoch.
        """
        ...

    def batch(self, request: Any, raw: Raw) -> Batch:
        """Return the bytes that were read as the arrays that the training takes."""
        ...


class PlannedStream:
    """Iterate over a rank's micro-batches in the plan's order. Close it, or use it in `with`.

    A global step is `config.micro_batches / ranks` micro-batches; `Batch.cursor` names the step. The stream continues
    from epoch to epoch and ends after `steps` steps.

    Args:
        reader: reader of the corpus to train on, usually of `load_index(...).training()`.
        config: configuration of the plan.
        rank: number of this rank.
        ranks: number of ranks that share a step. It must divide `config.micro_batches`.
        start: position of the first step.
        steps: number of steps.
        done: number of steps that the run trained before `start`.
        cpu_timeout_s: how long to wait for a free CPU to read with.

    Raises:
        ValueError: the plan cannot work, or the cluster has no CPU to read with, so that nothing would ever arrive.
    """

    def __init__(
        self,
        reader: Reader,
        config: PlanConfig,
        *,
        rank: int,
        ranks: int,
        start: Cursor,
        steps: int,
        done: int = 0,
        cpu_timeout_s: float = 30.0,
    ):
        config.check_ranks(ranks)
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in 0..{ranks - 1}, got {rank}")
        self._reader, index = reader, reader.index
        micro_batch_bytes = config.budget_frames * reader.bytes_per_frame
        self._per_block = max(1, BLOCK_BYTES // micro_batch_bytes)
        cpus = max(1.0, wait_for_cpus(cpu_timeout_s) // ranks)
        ahead = 2 * BLOCKS_AHEAD * max(BLOCK_BYTES, micro_batch_bytes)
        # At most a quarter of the object store for all ranks: others use it too.
        share = ray.cluster_resources().get("object_store_memory", ahead) / (4 * ranks)
        self._limits = ExecutionResources.for_limits(cpu=cpus, object_store_memory=min(ahead, share))
        steps_ahead = islice(planned_steps(index.frames, index.shard, config, start), steps)
        self._turns = (
            (number, step, mine)
            for number, step in enumerate(steps_ahead, start=done)
            for mine in rank_micro_batches(step.micro_batches, rank, ranks)
        )
        self._opened: list[_Segment] = []
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="planned-stream")
        # Reading starts now. The first block takes seconds and is read while the caller builds its model.
        self._following: Future[_Segment | None] | None = self._opener.submit(self._open_segment)
        self._batches = self._run()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> "PlannedStream":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._batches.close()
        self._opener.shutdown(cancel_futures=True)
        while self._opened:
            self._opened.pop().close()

    def _run(self) -> Generator[Batch, None, None]:
        """Yield the micro-batches of one segment after another. Open the next while the last blocks are trained on."""
        while self._following and (segment := self._following.result()):
            self._following = None
            for number, (blocks_left, raw) in enumerate(segment.raws()):
                if not self._following and blocks_left <= BLOCKS_AHEAD:
                    self._following = self._opener.submit(self._open_segment)
                step, request = segment.turns[number]
                batch = self._reader.batch(request, raw)
                yield replace(batch, cursor=step.cursor, step_frames=step.frames)
            self._opened.remove(segment)
            segment.close()

    def _open_segment(self) -> "_Segment | None":
        turns = [
            (step, self._reader.request(mine, step=number, epoch=step.cursor.epoch))
            for number, step, mine in islice(self._turns, SEGMENT_BLOCKS * self._per_block)
        ]
        if not turns:
            return None
        segment = _Segment(turns, self._per_block, self._reader.read, self._limits)
        self._opened.append(segment)
        return segment


class _Segment:
    """Read a run of a rank's micro-batches with one Ray Data execution."""

    def __init__(
        self,
        turns: list[tuple[Step, Any]],
        per_block: int,
        read: Callable[[Sequence[Any]], list[Raw]],
        limits: ExecutionResources,
    ):
        self.turns = turns
        requests = [
            {"first": i, "requests": pickle.dumps([r for _, r in turns[i : i + per_block]])}
            for i in range(0, len(turns), per_block)
        ]
        self._blocks_left = len(requests)
        dataset = ray.data.from_items(requests, override_num_blocks=len(requests))
        dataset.context.execution_options = ExecutionOptions(resource_limits=limits, preserve_order=True)
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.custom_execution_callback_classes = [_SchedulingPace]
        dataset = dataset.map_batches(
            partial(_read_block, read),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
        )
        tables = dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=BLOCKS_AHEAD // 2
        )
        self._tables = cast(Generator[pa.Table, None, None], iter(tables))
        # This starts the execution.
        self._first = next(self._tables)

    def raws(self) -> Iterator[tuple[int, Raw]]:
        """Yield the number of blocks that are still to come, and a micro-batch's bytes."""
        number = 0
        for table in chain([self._first], self._tables):
            self._blocks_left -= 1
            numbers = table.column("number").to_pylist()
            for i in range(len(table)):
                assert numbers[i] == number, "Ray Data did not keep the order"
                yield self._blocks_left, _raw_of(table, i)
                number += 1
        assert number == len(self.turns), f"Ray Data gave {number} of {len(self.turns)} micro-batches"

    def close(self) -> None:
        self._tables.close()


class _SchedulingPace(ExecutionCallback):
    """Limit how often Ray Data's scheduling loop of an execution iterates.

    The loop waits for the output of tasks. But when output is ready and backpressure holds it back, the loop spins: it
    takes a whole core, and the interpreter lock from the training.
    """

    def __init__(self):
        self._last_s = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._last_s + SCHEDULE_S - time.monotonic()))
        self._last_s = time.monotonic()


def _read_block(read: Callable[[Sequence[Any]], list[Raw]], block: pa.Table) -> pa.Table:
    """Read the requests of one row into one row each, in a Ray Data task."""
    first = block["first"][0].as_py()
    raws = read(pickle.loads(block["requests"][0].as_py()))
    return pa.table(
        {
            "number": pa.array(range(first, first + len(raws)), pa.int64()),
            "bad": pa.array([json.dumps(raw.bad) for raw in raws], pa.string()),
            **{
                name: pa.chunked_array([_as_row(raw.arrays[name]) for raw in raws]) for name in raws[0].arrays
            },
        }
    )


def _as_row(data: np.ndarray) -> pa.Array:
    """Return one value of large_binary that shares the array's memory."""
    edges = np.array([0, data.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(edges), pa.py_buffer(data)])


def _raw_of(table: pa.Table, row: int) -> Raw:
    arrays = {
        name: np.frombuffer(table[name][row].as_buffer(), np.uint8)
        for name in table.column_names
        if name not in ("number", "bad")
    }
    return Raw(arrays, [(place, reason) for place, reason in json.loads(table["bad"][row].as_py())])


def wait_for_cpus(timeout_s: float) -> float:
    """Wait until Ray runs a task, and return the number of CPUs that no placement group holds.

    A training that holds every CPU leaves none to read its data, and would wait for ever without an error.

    Raises:
        ValueError: no CPU came free in `timeout_s` seconds.
    """
    probe = _probe.remote()
    ready, _ = ray.wait([probe], timeout=timeout_s)
    total = ray.cluster_resources().get("CPU", 0.0)
    groups = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
    held = sum(bundle.get("CPU", 0.0) for g in groups for bundle in g["bundles"].values())
    if not ready:
        free = ray.available_resources().get("CPU", 0.0)
        ray.cancel(probe, force=True)
        raise ValueError(
            f"no CPU came free to read data in {timeout_s:g} s: reading needs 1, Ray has {total:g}, of which "
            f"{free:g} free and {held:g} held by placement groups: start Ray with more, or give each rank fewer"
        )
    return total - held


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0)
def _probe() -> None:
    """Do nothing. Importing this module already warms up a process that reads blocks."""
