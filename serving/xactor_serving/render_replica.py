"""Run the render deployment, which renders windows of many videos in batches.

A window is a group of frames that are denoised together. A portrait's reference, the features that the renderer copies
from the portrait, is computed once and cached.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from ray import serve
from ray.serve.config import RequestRouterConfig

from xactor.model_folder import RENDERER_COMPONENTS, local_folder
from xactor.options import recommended
from xactor.render import Reference, RenderConfig, Renderer, Window
from xactor_serving.device import replica_device
from xactor_serving.metrics import metrics
from xactor_serving.replica_messages import PortraitJob, RenderFacts, WindowJob
from xactor_serving.routing import PortraitRouter

# Maximum number of references that a replica caches.
MAX_REFERENCES = 32
T = TypeVar("T")


@serve.deployment(
    name="render",
    health_check_period_s=5,
    health_check_timeout_s=30,
    request_router_config=RequestRouterConfig(request_router_class=PortraitRouter),  # pyright: ignore
)
class Render:
    """Run one replica of the renderer.

    Args:
        model: Model folder or its URI.
        device: auto, cpu or cuda.
        max_batch: Maximum number of windows in one forward pass on a GPU. A CPU renders one window at a time, because
            on a CPU a batch is no faster and delays its first window.
        stuck_s: Maximum seconds without progress: for one DDIM step of a batch of windows, or one reference. After them
            the health check fails.
    """

    def __init__(self, model: str, *, device: str, max_batch: int, stuck_s: float):
        device = replica_device(device)
        self._recommended = recommended(model)
        self._renderer = Renderer.from_pretrained(local_folder(model, components=RENDERER_COMPONENTS))
        if device == "cuda":
            self._renderer.to("cuda", torch.bfloat16)
        else:
            max_batch = 1
        # Face crops of recent portraits by the portrait's name, the least recently used first.
        self._squares: dict[str, np.ndarray] = {}
        self._stuck_s = stuck_s
        # A single thread runs one forward pass at a time, and reuses the memory that earlier passes have allocated.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="render")
        # Time at which the thread began its current step or reference. None while it has no work.
        self._step_begun: float | None = None
        self._batched.set_max_batch_size(max_batch)  # pyright: ignore

    async def facts(self) -> RenderFacts:
        """Return the description of the renderer."""
        return RenderFacts(
            image_size=self._renderer.image_size,
            latent_dim=self._renderer.latent_dim,
            recommended=self._recommended,
        )

    async def prepare(self, portrait: PortraitJob) -> None:
        """Compute the reference of a portrait, before its first window needs it.

        The caller must set the call's `multiplexed_model_id` to the portrait's name.
        """
        self._keep(portrait)
        await self._reference(portrait.name)  # pyright: ignore

    async def window(self, job: WindowJob) -> np.ndarray:
        """Return a window's frames, uint8 [W, S, S, 3].

        The caller must set the call's `multiplexed_model_id` to the portrait's name.
        """
        begun = time.monotonic()
        z = torch.tensor(job.z)
        # Check before batching, so that an invalid window does not fail its whole batch.
        self._renderer.check(z, job.config)
        self._keep(job.portrait)
        with metrics().queued("render"):
            reference = await self._reference(job.portrait.name)  # pyright: ignore
            task = _Task(job, reference)
            try:
                frames = await self._batched(task)  # pyright: ignore
            finally:
                # If the caller has left, the thread stops at its next step.
                task.left = True
        assert frames is not None, "only a window whose caller has left has no frames"
        metrics().window_s.observe(time.monotonic() - begun)
        metrics().windows.inc()
        return frames

    def _keep(self, portrait: PortraitJob) -> None:
        """Store a portrait's face crop for `_reference`, which gets only the portrait's name from Serve."""
        # Remove and insert, so that the first entry is the one that was used least recently.
        self._squares.pop(portrait.name, None)
        self._squares[portrait.name] = portrait.square
        if len(self._squares) > 2 * MAX_REFERENCES:
            del self._squares[next(iter(self._squares))]

    @serve.multiplexed(max_num_models_per_replica=MAX_REFERENCES)
    async def _reference(self, name: str) -> Reference:
        """Compute a portrait's reference. Serve caches the last used ones, and reports their names to the router."""
        square = self._squares[name]
        metrics().references.inc()
        return await self._in_thread(lambda: self._renderer.reference(square))

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.005)
    async def _batched(self, tasks: Sequence["_Task"]) -> list[np.ndarray | None]:
        """Return the frames of windows that Serve has collected from concurrent calls, at most `max_batch` windows."""
        return await self._in_thread(lambda: self._render(tasks))

    def _render(self, tasks: Sequence["_Task"]) -> list[np.ndarray | None]:
        """Return the frames of each window, or None for a window whose caller has left.

        Windows with equal lengths and options share forward passes.
        """
        groups: dict[tuple[int, RenderConfig], list[_Task]] = {}
        for task in tasks:
            groups.setdefault((len(task.job.z), task.job.config), []).append(task)
        for (_, config), group in groups.items():
            self._render_group([task for task in group if not task.left], config)
        return [task.frames for task in tasks]

    def _render_group(self, tasks: Sequence["_Task"], config: RenderConfig) -> None:
        """Render windows of the same length in one batch, until it is done or all callers have left."""
        if not tasks:
            return

        def on_step(number: int, level: int, x: torch.Tensor) -> torch.Tensor:
            self._step_begun = time.monotonic()
            if all(task.left for task in tasks):
                raise _AllLeft
            return x

        metrics().batch_size.observe(len(tasks), {"of": "render"})
        windows = [window_of(task.job, task.reference) for task in tasks]
        with contextlib.suppress(_AllLeft):
            made = self._renderer.windows(windows, config, on_step=on_step)
            for task, frames in zip(tasks, made, strict=True):
                task.frames = frames

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run work in the render thread, and record when its steps begin, for the health check."""

        def timed() -> T:
            self._step_begun = time.monotonic()
            try:
                return work()
            finally:
                self._step_begun = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    def check_health(self) -> None:
        """Raise when the replica is stuck. Serve calls this periodically and replaces a replica that raises."""
        begun = self._step_begun
        busy_s = 0.0 if begun is None else time.monotonic() - begun
        if busy_s > self._stuck_s:
            raise RuntimeError(f"the renderer has been at one step or one reference for {busy_s:.0f} s")


class _AllLeft(Exception):
    """End the work on a batch whose callers have all left."""


class _Task:
    """Hold a job, the reference of its portrait and its frames.

    Attributes:
        left: Whether the caller no longer waits for the frames.
    """

    def __init__(self, job: WindowJob, reference: Reference):
        self.job, self.reference = job, reference
        self.left = False
        self.frames: np.ndarray | None = None


def window_of(job: WindowJob, reference: Reference) -> Window:
    """Convert a job to the renderer's input."""
    return Window(
        reference=reference,
        z=torch.tensor(job.z),
        origin=None if job.origin is None else torch.tensor(job.origin),
        seed=job.seed,
        first_frame=job.first_frame,
    )
