"""Save checkpoints while the training goes on: a step waits only for a copy in memory, and a thread writes the copy."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from xactor_platform.cluster.environment import packages
from xactor_platform.training.run.checkpoints import FORMAT, Checkpoints, Manifest
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.run.snapshot import HostSnapshot


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Describe a finished checkpoint."""

    step: int
    """Number of global steps (optimizer steps) that the run had done."""
    blocked_s: float
    """Seconds that the training waited for the checkpoint."""
    seconds: float
    """Seconds from the start of the checkpoint to its end."""


def agree_on_token() -> str:
    """Return a random identifier of this start of the ranks, the same on all ranks. All ranks must call it."""
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    return token[0]


class Saver:
    """Save one rank's files of the checkpoints, one checkpoint at a time: `save` waits for the previous checkpoint.

    A thread of each rank writes the rank's files. When all ranks have written theirs, the thread of rank 0 commits the
    checkpoint: it writes the manifest, which makes the checkpoint complete.

    Args:
        checkpoints: the checkpoints of the run.
        rank: this rank.
        ranks: number of ranks.
        token: identifies this start of the ranks; see `agree_on_token`.
        parameters: number of parameters of the model, for the manifest.
        config: all options of the training, for the manifest.
        timeout_s: seconds that rank 0 waits for the files of the other ranks.
        before_commit: rank 0 calls it in the writing thread before each commit. An exception prevents the commit.
        committed: rank 0 calls it in the writing thread after each commit.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        rank: int,
        ranks: int,
        token: str,
        parameters: int,
        config: dict[str, Any],
        timeout_s: float,
        before_commit: Callable[[], None],
        committed: Callable[[Saved], None],
    ):
        self._checkpoints, self._rank, self._ranks, self._token = checkpoints, rank, ranks, token
        self._parameters, self._config, self._timeout_s = parameters, config, timeout_s
        self._before_commit, self._committed = before_commit, committed
        self._snapshot = HostSnapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, engine: Any, step: int, client_state: dict[str, Any], score: float | None) -> None:
        """Start a checkpoint. All ranks must call it. Raise the error of the previous checkpoint if it failed.

        Args:
            engine: the DeepSpeed engine whose state is saved.
            step: number of global steps done.
            client_state: further state that is saved with the engine's.
            score: held-out loss after this step; None if the step was not evaluated.
        """
        begun = time.perf_counter()
        self.wait()
        files = self._snapshot.take(engine, client_state)
        blocked_s = time.perf_counter() - begun
        self._pending = self._thread.submit(self._write, step, files, score, begun, blocked_s)

    def wait(self) -> None:
        """Wait for the pending checkpoint, and raise its error if it failed."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def check(self) -> None:
        """Raise the error of the last checkpoint if it has already failed. Do not wait for it."""
        if self._pending and self._pending.done():
            self.wait()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Wait for the pending checkpoint, unless ranks may be lost. Without their files it would never be complete."""
        # TrainingStopped is raised on all ranks together. After any other error, ranks may be lost.
        all_ranks_alive = kind is None or issubclass(kind, TrainingStopped)
        try:
            if all_ranks_alive:
                self.wait()
        finally:
            self._thread.shutdown(wait=all_ranks_alive, cancel_futures=True)

    def _write(
        self, step: int, files: dict[str, Any], score: float | None, begun: float, blocked_s: float
    ) -> None:
        """Write this rank's files. On rank 0, also wait for the files of the other ranks, and commit the checkpoint."""
        self._checkpoints.write_rank(step, self._rank, self._token, files)
        if self._rank:
            return
        written = self._checkpoints.wait_for_ranks(step, self._ranks, self._token, self._timeout_s)
        self._before_commit()
        manifest = Manifest(
            format=FORMAT,
            step=step,
            ranks=self._ranks,
            parameters=self._parameters,
            score=score,
            config=self._config,
            packages=packages(),
            files=written,
        )
        self._checkpoints.commit(manifest)
        self._committed(Saved(step=step, blocked_s=blocked_s, seconds=time.perf_counter() - begun))
