"""Prepare the next micro-batch, and copy it to the rank's device, while the rank trains on the current one."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Self

import torch

from xactor_platform.data.batch import Batch
from xactor_platform.training.training_stage import TrainingStage


class Prefetch:
    """Iterate over micro-batches and what the objective takes for them. A thread prepares one micro-batch ahead.

    On a GPU, a stream of its own copies it from pinned memory while the GPU computes. The content does not depend on
    the thread: random numbers have keys. Close the object, or use it in a `with` block, before the source is closed.

    Args:
        source: the rank's micro-batches.
        stage: the stage that is trained.
        seed: the seed of the run.
        device: the rank's device.
    """

    def __init__(self, source: Iterator[Batch], stage: TrainingStage, *, seed: int, device: torch.device):
        self._source, self._stage, self._seed = source, stage, seed
        self._copies = self._computing = None
        if device.type == "cuda":
            self._copies, self._computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: Future[tuple[Batch, Any, Any]] = self._thread.submit(self._prepare)

    def __iter__(self) -> Iterator[tuple[Batch, Any]]:
        return self

    def __next__(self) -> tuple[Batch, Any]:
        batch, inputs, copied = self._next.result()
        self._next = self._thread.submit(self._prepare)
        if self._computing is not None:
            self._computing.wait_event(copied)
        return batch, inputs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self) -> tuple[Batch, Any, Any]:
        """Return the next micro-batch, what the objective takes for it, and the event of its copy to a GPU."""
        batch = next(self._source)
        assert batch.cursor is not None
        if self._copies is not None:
            # The copy reuses memory of earlier micro-batches, so it starts when all work that is launched is done.
            self._copies.wait_stream(self._computing)  # pyright: ignore[reportArgumentType]
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            inputs = self._stage.inputs(batch, (self._seed, batch.cursor.epoch))
            copied = None if self._copies is None else self._copies.record_event()
        return batch, inputs, copied
