"""Stream one rank's micro-batches from the shards through Ray Data, in the order of the plan."""

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

# Approximate bytes of a block, the data that one Ray task reads. With fewer bytes the overhead per task becomes
# noticeable.
BLOCK_BYTES = 32 << 20
# Number of blocks of one rank that are read ahead of the training.
BLOCKS_AHEAD = 8
# Number of blocks that one Ray Data execution reads. The requests for all these blocks are made before the execution
# starts.
SEGMENT_BLOCKS = 256
# Minimum seconds between two iterations of Ray Data's scheduling loop. The loop runs in the training's process and
# needs the interpreter lock of that process. With 0.01 s the loop's thread used a quarter of a core.
SCHEDULE_S = 0.05

# Ray Data logs the end of each execution. A training has many executions, and the log lines would hide its progress.
for _name in ("execution.streaming_executor", "progress"):
    logging.getLogger(f"ray.data._internal.{_name}").setLevel(logging.ERROR)


class Reader(Protocol):
    """Read micro-batches of one kind of corpus: latents or videos."""

    index: Index
    """The corpus."""
    bytes_per_frame: int
    """Approximate number of bytes that Ray Data transports for each planned frame."""
    read: Callable[[Sequence[Any]], list[Raw]]
    """Function that reads the requests of a block in a Ray Data task. Ray sends the function to the tasks, but not the
    index."""

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int) -> Any:
        """Return a small object that names what to read for a micro-batch.

        Args:
            micro_batch: a micro-batch of the plan.
            step: number of the micro-batch's global step in the run, from 0.
            epoch: number of the micro-batch's epoch, from 0.
        """
        ...

    def batch(self, request: Any, raw: Raw) -> Batch:
        """Turn the bytes that were read for a request into the arrays that the training takes."""
        ...


class PlannedStream:
    """Iterate over a rank's micro-batches in the plan's order. Close the stream, or use it in a `with` block.

    A global step has `config.micro_batches / ranks` micro-batches of each rank; `Batch.cursor` names the step. The
    stream continues from epoch to epoch and ends after `steps` steps.

    Args:
        reader: reader of the corpus to train on, usually of `load_index(...).training()`.
        config: the configuration of the plan.
        rank: number of this rank, from 0.
        ranks: number of ranks that share a step. It must divide `config.micro_batches`.
        start: position of the first step.
        steps: number of steps.
        done: number of steps that the run trained before `start`.
        cpu_timeout_s: seconds to wait for a CPU that is free to read.

    Raises:
        ValueError: `rank` or `ranks` does not fit the plan, or the cluster has no free CPU to read, so that no data
            would ever arrive.
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
        ahead_bytes = 2 * BLOCKS_AHEAD * max(BLOCK_BYTES, micro_batch_bytes)
        # All ranks together use at most a quarter of the object store, because other work on the cluster uses it too.
        store_share = ray.cluster_resources().get("object_store_memory", ahead_bytes) / (4 * ranks)
        self._limits = ExecutionResources.for_limits(
            cpu=cpus, object_store_memory=min(ahead_bytes, store_share)
        )
        steps_ahead = islice(planned_steps(index.frames, index.shard, config, start), steps)
        # This rank's micro-batches, each with its step and the number of that step in the run.
        self._turns = (
            (number, step, micro_batch)
            for number, step in enumerate(steps_ahead, start=done)
            for micro_batch in rank_micro_batches(step.micro_batches, rank, ranks)
        )
        self._opened: list[_Segment] = []
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="planned-stream")
        # Start to read now: the first block takes seconds, in which the caller can build its model.
        self._next_segment: Future[_Segment | None] | None = self._opener.submit(self._open_segment)
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
        """Yield the micro-batches of one segment after another.

        Open the next segment while the current segment still has blocks left, so that the training need not wait.
        """
        while self._next_segment and (segment := self._next_segment.result()):
            self._next_segment = None
            for number, (blocks_left, raw) in enumerate(segment.raws()):
                if not self._next_segment and blocks_left <= BLOCKS_AHEAD:
                    self._next_segment = self._opener.submit(self._open_segment)
                step, request = segment.turns[number]
                batch = self._reader.batch(request, raw)
                yield replace(batch, cursor=step.cursor, step_frames=step.frames)
            self._opened.remove(segment)
            segment.close()

    def _open_segment(self) -> "_Segment | None":
        """Start to read the next segment. Return None after the last step."""
        turns = [
            (step, self._reader.request(micro_batch, step=number, epoch=step.cursor.epoch))
            for number, step, micro_batch in islice(self._turns, SEGMENT_BLOCKS * self._per_block)
        ]
        if not turns:
            return None
        segment = _Segment(turns, self._per_block, self._reader.read, self._limits)
        self._opened.append(segment)
        return segment


class _Segment:
    """Read consecutive micro-batches of a rank with one Ray Data execution.

    Args:
        turns: the global step and the request of each micro-batch.
        per_block: number of micro-batches in a block.
        read: see `Reader.read`.
        limits: CPUs and object store memory that the execution may use.
    """

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
        # The first `next` starts the execution, so call it now.
        self._first_table = next(self._tables)

    def raws(self) -> Iterator[tuple[int, Raw]]:
        """Yield for each micro-batch the number of blocks that come after its block, and the micro-batch's bytes."""
        number = 0
        for table in chain([self._first_table], self._tables):
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
    """Limit how often the scheduling loop of a Ray Data execution iterates.

    The loop waits for the output of tasks. But when output is ready and backpressure holds the output back, the loop
    iterates without a pause: it occupies a core, and takes the interpreter lock from the training.
    """

    def __init__(self):
        self._last_s = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._last_s + SCHEDULE_S - time.monotonic()))
        self._last_s = time.monotonic()


def _read_block(read: Callable[[Sequence[Any]], list[Raw]], block: pa.Table) -> pa.Table:
    """Read the micro-batches of a block in a Ray Data task.

    Args:
        read: see `Reader.read`.
        block: one row with the block's pickled requests, and the number of the first request in the segment.

    Returns:
        a row for each request: its number in the segment, and the content of its `Raw`.
    """
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
    """Return an Arrow array with one large_binary value, which shares the memory of `data`."""
    offsets = np.array([0, data.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _raw_of(table: pa.Table, row: int) -> Raw:
    """Return the micro-batch that `_read_block` wrote to a row. The arrays share the table's memory."""
    arrays = {
        name: np.frombuffer(table[name][row].as_buffer(), np.uint8)
        for name in table.column_names
        if name not in ("number", "bad")
    }
    return Raw(arrays, [(place, reason) for place, reason in json.loads(table["bad"][row].as_py())])


def wait_for_cpus(timeout_s: float) -> float:
    """Wait until Ray runs a task, and return the number of CPUs that no placement group holds.

    If a training holds every CPU, none is left to read its data. Without this check the training would then wait for
    ever, without an error.

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
            f"{free:g} free and {held:g} held by placement groups: "
            "start Ray with more CPUs, or give each rank fewer"
        )
    return total - held


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0)
def _probe() -> None:
    """Do nothing. If this task runs, there is a free CPU.

    The worker process of the task has then also imported this module, and is ready to read blocks.
    """
