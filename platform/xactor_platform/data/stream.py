"""The Ray Data stream of the planned micro-batches, one for each rank of the training."""

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
from xactor_platform.data.plan import Cursor, MicroBatch, PlanConfig, Step, rank_micro_batches, walk
from xactor_platform.data.reading import Raw

BLOCK_BYTES = 32 << 20  # of micro-batches that one task reads: fewer make the tasks' own cost count
BLOCKS_AHEAD = 8  # read and not yet trained on, of one rank
SEGMENT_BLOCKS = 256  # of one Ray Data execution: its requests are laid out before it starts
SCHEDULE_S = 0.01  # the least from one turn of Ray Data's scheduling to the next

# Ray Data reports each execution's end; here that is one of many, in the midst of a training's progress line.
for _name in ("execution.streaming_executor", "progress"):
    logging.getLogger(f"ray.data._internal.{_name}").setLevel(logging.ERROR)


class Reader(Protocol):
    """How micro-batches of one kind of corpus are read: latents, or videos."""

    index: Index
    bytes_per_frame: int  # of a planned frame on its way, about
    read: Callable[
        [Sequence[Any]], list[Raw]
    ]  # what Ray Data's tasks do; it travels to them, and the index does not

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int) -> Any:
        """What to read for a micro-batch of global step `step`, the run's first being 0; small."""
        ...

    def batch(self, request: Any, raw: Raw) -> Batch:
        """What was read, as the training takes it."""
        ...


class PlannedStream:
    """A rank's micro-batches in the plan's order: an iterator, to be closed (or used in `with`).

    A global step is `config.micro_batches / ranks` batches; `Batch.cursor` says which. It goes on from epoch
    to epoch and ends after `steps` steps.

    Args:
        reader: of what to train on, usually of `load_index(...).training()`.
        config: the plan's.
        rank: whose micro-batches.
        ranks: how many share a step; must divide `config.micro_batches`.
        start: the first step to give.
        steps: how many steps to give.
        done: how many steps the run has had before.
        cpu_timeout_s: how long to wait for Ray to have a CPU free for reading.

    Raises:
        ValueError: a plan that cannot work, or a cluster without a CPU for reading, where nothing would ever
            arrive.
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
        share = ray.cluster_resources().get("object_store_memory", ahead) / (4 * ranks)  # the rest is others'
        self._limits = ExecutionResources.for_limits(cpu=cpus, object_store_memory=min(ahead, share))
        steps_ahead = islice(walk(index.frames, index.shard, config, start), steps)
        self._turns = (
            (number, step, mine)
            for number, step in enumerate(steps_ahead, start=done)
            for mine in rank_micro_batches(step.micro_batches, rank, ranks)
        )
        self._opened: list[_Segment] = []
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="planned-stream")
        # Reading starts now: the first block, which takes seconds, comes while the caller builds its model.
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
        """Ends the reading, at whatever point."""
        self._batches.close()
        self._opener.shutdown(cancel_futures=True)
        while self._opened:
            self._opened.pop().close()

    def _run(self) -> Generator[Batch, None, None]:
        """Segment after segment; the next is opened while the last one's end is trained on."""
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
    """A run of a rank's micro-batches that one Ray Data execution reads."""

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
        dataset.context.custom_execution_callback_classes = [_Unhurried]
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
        self._first = next(self._tables)  # now the execution is under way

    def raws(self) -> Iterator[tuple[int, Raw]]:
        """How many blocks are still to come, and a micro-batch's bytes."""
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


class _Unhurried(ExecutionCallback):
    """Lets the scheduling of an execution turn no more often than is of use.

    Its loop waits for tasks to bring something; but where they have, and may not hand it on since enough waits
    already, it turns without end, on a whole core and with the training's own interpreter lock.
    """

    def __init__(self):
        self._turned = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._turned + SCHEDULE_S - time.monotonic()))
        self._turned = time.monotonic()


def _read_block(read: Callable[[Sequence[Any]], list[Raw]], block: pa.Table) -> pa.Table:
    """What a Ray Data task does: reads the requests of one row into a row for each of them."""
    first = block["first"][0].as_py()
    raws = read(pickle.loads(block["requests"][0].as_py()))
    return pa.table(
        {
            "number": pa.array(range(first, first + len(raws)), pa.int64()),
            "bad": pa.array([json.dumps(raw.bad) for raw in raws], pa.string()),
            **{name: pa.chunked_array([_as_row(raw.parts[name]) for raw in raws]) for name in raws[0].parts},
        }
    )


def _as_row(data: np.ndarray) -> pa.Array:
    """One value of large_binary that shares the array's memory."""
    edges = np.array([0, data.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(edges), pa.py_buffer(data)])


def _raw_of(table: pa.Table, row: int) -> Raw:
    parts = {
        name: np.frombuffer(table[name][row].as_buffer(), np.uint8)
        for name in table.column_names
        if name not in ("number", "bad")
    }
    return Raw(parts, [(place, reason) for place, reason in json.loads(table["bad"][row].as_py())])


def wait_for_cpus(timeout_s: float) -> float:
    """CPUs that no placement group holds, once Ray was seen to run a task on one.

    A training that holds every CPU leaves none to read its data, and would wait for ever without a word.
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
    """Importing this module has already warmed the process that reads the first block."""
