"""The motion and render deployments as seen by the ingress: with time limits, and again where a replica failed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from xactor_serving.errors import ServiceError, broken, full, timed_out
from xactor_serving.metrics import metrics
from xactor_serving.work import ChunkJob, MotionFacts, PortraitJob, RenderFacts, WindowJob

_GONE = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)
T = TypeVar("T")


class Replicas:
    """Calls on both deployments.

    Args:
        motion, render: their handles. timeout_s: of one chunk or window. patience_s: how long work is tried again
            when replicas fail or are full.
    """

    def __init__(
        self, motion: DeploymentHandle, render: DeploymentHandle, *, timeout_s: float, patience_s: float
    ):
        self._motion, self._render = motion, render
        self._timeout_s, self._patience_s = timeout_s, patience_s

    async def facts(self) -> tuple[MotionFacts, RenderFacts]:
        return await self._motion.facts.remote(), await self._render.facts.remote()

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """A chunk's latents, float32 [n, D] each. ServiceError: it could not be made."""
        pieces: asyncio.Queue[np.ndarray | None] = asyncio.Queue()
        made = 0

        async def once() -> None:
            nonlocal made
            skip = made  # what a replica that failed had made of it; the next one makes the same
            call: Any = self._motion.options(stream=True).chunk.remote(job)
            try:
                async for piece in call:
                    new = piece[max(skip, 0) :]
                    skip -= len(piece)
                    if len(new):
                        made += len(new)
                        pieces.put_nowait(new)
            finally:
                call.cancel()
            pieces.put_nowait(None)

        work = asyncio.ensure_future(self._again("motion", once))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def prepare(self, portrait: PortraitJob) -> None:
        """Has a render replica make ready for a portrait's windows. ServiceError: it could not."""

        async def once() -> None:
            call = self._render.options(multiplexed_model_id=portrait.name).prepare.remote(portrait)
            try:
                await call
            finally:
                call.cancel()

        await self._again("render", once)

    async def window(self, job: WindowJob) -> np.ndarray:
        """A window's frames, uint8 [W, S, S, 3]. ServiceError: it could not be made."""

        async def once() -> np.ndarray:
            call = self._render.options(multiplexed_model_id=job.portrait.name).window.remote(job)
            try:
                return await call
            finally:
                call.cancel()

        return await self._again("render", once)

    async def _again(self, what: str, once: Callable[[], Awaitable[T]]) -> T:
        """A call within its time limit; again elsewhere when its replica is gone or has no room."""

        def count(state: RetryCallState) -> None:
            metrics().again.inc(tags={"of": what})

        retrying = AsyncRetrying(
            retry=retry_if_exception_type((*_GONE, BackPressureError)),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            stop=stop_after_delay(self._patience_s),
            before_sleep=count,
            reraise=True,
        )

        async def timed() -> T:
            async with asyncio.timeout(self._timeout_s):
                return await once()

        try:
            return await retrying(timed)
        except BackPressureError as error:
            raise full(f"no {what} replica has room") from error
        except _GONE as error:
            raise broken(f"the {what} replicas fail") from error
        except TimeoutError as error:
            raise timed_out(f"{what} took longer than {self._timeout_s:g} s") from error
        except ValueError as error:
            raise ServiceError(500, "failed", f"the {what} model failed: {_line(error)}") from error


def _line(error: Exception) -> str:
    """A remote error's own words, without its stack."""
    return " ".join(str(getattr(error, "cause", None) or error).split())
