"""Call the motion and render deployments from the ingress, with deadlines and retries."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from ray import serve
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

from xactor_serving.errors import broken, failed, full, timed_out
from xactor_serving.metrics import metrics
from xactor_serving.replica_messages import ChunkJob, MotionFacts, PortraitJob, RenderFacts, WindowJob

# Errors of a call whose replica died, or for which there is no replica.
_LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)
# A deployment that has answered within this time, in seconds, is not asked again whether it answers.
_FRESH_S = 5
# Maximum seconds of each part of a check.
_CHECK_S = 3
T = TypeVar("T")


class Replicas:
    """Call the replicas of both deployments.

    Args:
        motion: Handle of the motion deployment.
        render: Handle of the render deployment.
        call_timeout_s: Maximum seconds for one call, which makes a chunk of motion or a window of frames. The time that
            the call waits at a replica counts.
        retry_s: Seconds during which a call is retried if its replica failed or was full.
    """

    def __init__(
        self, motion: DeploymentHandle, render: DeploymentHandle, *, call_timeout_s: float, retry_s: float
    ):
        self._motion, self._render = motion, render
        # Time at which a deployment has last answered a call, by its name.
        self._answered: dict[str, float] = {}
        self._call_timeout_s, self._retry_s = call_timeout_s, retry_s

    async def facts(self) -> tuple[MotionFacts, RenderFacts]:
        """Return the descriptions of both models."""
        return await self._motion.facts.remote(), await self._render.facts.remote()

    async def check(self) -> None:
        """Raise an error unless both deployments answer, or have replicas that Serve finds healthy but busy."""
        await asyncio.gather(self._check("motion", self._motion), self._check("render", self._render))

    async def _check(self, deployment: str, handle: DeploymentHandle) -> None:
        if time.monotonic() - self._answered.get(deployment, -math.inf) < _FRESH_S:
            return
        try:
            async with asyncio.timeout(_CHECK_S):
                await handle.facts.remote()
        except TimeoutError:
            # The call waits behind others if all replicas are full. Then Serve's own checks of their health count.
            async with asyncio.timeout(_CHECK_S):
                if not await asyncio.to_thread(_running_replicas, deployment):
                    raise
        else:
            self._answered[deployment] = time.monotonic()

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """Yield a chunk's latents in pieces, float32 [n, D].

        Raises:
            ServiceError: The chunk could not be made.
        """
        pieces: asyncio.Queue[np.ndarray | None] = asyncio.Queue()
        yielded = 0

        async def attempt() -> None:
            nonlocal yielded
            # A retry makes the same latents again. Skip those that the failed replica has already returned.
            skip = yielded
            call: Any = self._motion.options(stream=True).chunk.remote(job)
            try:
                async for piece in call:
                    self._answered["motion"] = time.monotonic()
                    new = piece[max(skip, 0) :]
                    skip -= len(piece)
                    if len(new):
                        yielded += len(new)
                        pieces.put_nowait(new)
            finally:
                call.cancel()
            pieces.put_nowait(None)

        work = asyncio.ensure_future(self._retry("motion", attempt))
        # None ends the loop below after a failure too. `await work` then raises the error.
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def prepare(self, portrait: PortraitJob) -> None:
        """Compute a portrait's reference on a render replica, before its first window.

        Raises:
            ServiceError: The reference could not be computed.
        """

        async def attempt() -> None:
            call = self._render.options(multiplexed_model_id=portrait.name).prepare.remote(portrait)
            try:
                await call
            finally:
                call.cancel()

        await self._retry("render", attempt)

    async def window(self, job: WindowJob) -> np.ndarray:
        """Return a window's frames, uint8 [W, S, S, 3].

        Raises:
            ServiceError: The window could not be rendered.
        """

        async def attempt() -> np.ndarray:
            call = self._render.options(multiplexed_model_id=job.portrait.name).window.remote(job)
            try:
                return await call
            finally:
                call.cancel()

        return await self._retry("render", attempt)

    async def _retry(self, deployment: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call a deployment, and return the result. Call again if the replica was lost or full.

        Args:
            deployment: The deployment's name, for metrics and messages.
            attempt: Makes one call. Each call has the deadline `call_timeout_s`.

        Raises:
            ServiceError: The calls failed for `retry_s` seconds, a call took too long, or the model failed.
        """

        def count_retry(state: RetryCallState) -> None:
            metrics().retries.inc(tags={"of": deployment})

        retrying = AsyncRetrying(
            retry=retry_if_exception_type((*_LOST, BackPressureError)),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            stop=stop_after_delay(self._retry_s),
            before_sleep=count_retry,
            reraise=True,
        )

        async def timed_attempt() -> T:
            async with asyncio.timeout(self._call_timeout_s):
                result = await attempt()
            self._answered[deployment] = time.monotonic()
            return result

        try:
            return await retrying(timed_attempt)
        except BackPressureError as error:
            raise full(f"every {deployment} replica is full") from error
        except _LOST as error:
            raise broken(f"the {deployment} replicas failed in every retry") from error
        except TimeoutError as error:
            raise timed_out(f"{deployment} took longer than {self._call_timeout_s:g} s") from error
        except ValueError as error:
            raise failed(f"the {deployment} model failed: {_one_line(error)}") from error


def _running_replicas(deployment: str) -> int:
    """Return the number of replicas of a deployment that run and pass Serve's checks of their health."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    states = application.deployments[deployment].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def _one_line(error: Exception) -> str:
    """Return the message of a replica's error as one line, without the stack trace."""
    return " ".join(str(getattr(error, "cause", None) or error).split())
