"""Saving beside the training: a step waits for a copy in memory, and a thread writes that to the storage."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from xactor_platform.cluster.environment import packages
from xactor_platform.training.run.checkpoints import FORMAT, Checkpoints, Manifest
from xactor_platform.training.run.health import TrainingStopped
from xactor_platform.training.run.snapshot import HostSnapshot


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that has come to exist. blocked_s: how long the steps waited; seconds: from its beginning on."""

    step: int
    blocked_s: float
    seconds: float


class Saver:
    """One rank's side of the checkpoints. One is under way at a time: the next waits for it.

    Args:
        token: of this start of the ranks, the same on all.
        parameters, config: of what is saved, for the manifest.
        timeout_s: how long rank 0 waits for the others' parts.
        before_commit: on rank 0, in the thread: what must be in the storage before the checkpoint counts.
        committed: on rank 0, in the thread.
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
        self._under_way: Future[None] | None = None

    def save(self, engine: Any, step: int, client_state: dict[str, Any], score: float | None) -> None:
        """On all ranks alike. Raises what the last one failed with."""
        begun = time.perf_counter()
        self.wait()
        files = self._snapshot.take(engine, client_state)
        blocked_s = time.perf_counter() - begun
        self._under_way = self._thread.submit(self._write, step, files, score, begun, blocked_s)

    def wait(self) -> None:
        """Until what is under way is written; raises what it failed with."""
        if self._under_way:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def check(self) -> None:
        """Raises what the last one failed with, without waiting."""
        if self._under_way and self._under_way.done():
            self.wait()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Waits for the last one, unless the ranks have lost each other: then it would never be complete."""
        together = kind is None or issubclass(kind, TrainingStopped)
        try:
            if together:
                self.wait()
        finally:
            self._thread.shutdown(wait=together, cancel_futures=True)

    def _write(
        self, step: int, files: dict[str, Any], score: float | None, begun: float, blocked_s: float
    ) -> None:
        self._checkpoints.write_part(step, self._rank, self._token, files)
        if self._rank:
            return
        written = self._checkpoints.parts(step, self._ranks, self._token, self._timeout_s)
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
