"""The render deployment: windows of any number of videos, batched; a portrait's reference is computed once and kept."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from ray import serve
from ray.serve.config import RequestRouterConfig

from xactor.render import Reference, Renderer, Window
from xactor.weights import local_folder
from xactor_serving.metrics import metrics
from xactor_serving.routing import PortraitRouter
from xactor_serving.work import PortraitJob, RenderFacts, WindowJob

PARTS = ("motion_encoder", "unet", "reference_unet", "vae", "scheduler")
REFERENCES = 32  # that a replica keeps
T = TypeVar("T")


@serve.deployment(
    name="render",
    health_check_period_s=5,
    health_check_timeout_s=30,
    request_router_config=RequestRouterConfig(request_router_class=PortraitRouter),  # pyright: ignore
)
class Render:
    """One replica.

    Args:
        model: a pipeline's folder or URI. max_batch: windows side by side on a GPU; a CPU makes them no sooner so, and
            the first would wait for all. stuck_s: a batch that takes longer is a failed health check.
    """

    def __init__(self, model: str, *, max_batch: int, stuck_s: float):
        self._renderer = Renderer.from_pretrained(local_folder(model, parts=PARTS))
        if torch.cuda.is_available():
            self._renderer.to("cuda", torch.bfloat16)
        else:
            max_batch = 1
        self._squares: dict[str, np.ndarray] = {}
        self._stuck_s = stuck_s
        # One pass at a time, and always in the same thread, whose memory is warm.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._begun: float | None = None
        self._batched.set_max_batch_size(max_batch)  # pyright: ignore

    async def facts(self) -> RenderFacts:
        return RenderFacts(image_size=self._renderer.image_size, latent_dim=self._renderer.latent_dim)

    async def prepare(self, portrait: PortraitJob) -> None:
        """Makes the reference that its windows will need. Called as `window` is."""
        self._keep(portrait)
        await self._reference(portrait.name)  # pyright: ignore

    async def window(self, job: WindowJob) -> np.ndarray:
        """Its frames, uint8 [W, S, S, 3]. Called with the portrait's name as the multiplexed model's id."""
        begun = time.monotonic()
        z = torch.tensor(job.z)
        self._renderer.check(z, job.config)  # here, where it fails alone
        self._keep(job.portrait)
        with metrics().queued("render"):
            reference = await self._reference(job.portrait.name)  # pyright: ignore
            frames = await self._batched((job, reference))  # pyright: ignore
        metrics().window_s.observe(time.monotonic() - begun)
        return frames

    def _keep(self, portrait: PortraitJob) -> None:
        """The square at hand for `_reference`, to which Serve gives the name alone."""
        self._squares.pop(portrait.name, None)
        self._squares[portrait.name] = portrait.square
        if len(self._squares) > 2 * REFERENCES:
            del self._squares[next(iter(self._squares))]

    @serve.multiplexed(max_num_models_per_replica=REFERENCES)
    async def _reference(self, name: str) -> Reference:
        """Serve keeps the latest and tells the router which."""
        square = self._squares[name]
        metrics().references.inc()
        return await self._pass(lambda: self._renderer.reference(square))

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.005)
    async def _batched(self, jobs: Sequence[tuple[WindowJob, Reference]]) -> list[np.ndarray]:
        return await self._pass(lambda: self._render(jobs))

    def _render(self, jobs: Sequence[tuple[WindowJob, Reference]]) -> list[np.ndarray]:
        """Those that can be denoised together are: of one length and one choice of steps."""
        alike: dict[object, list[int]] = {}
        for at, (job, _) in enumerate(jobs):
            alike.setdefault((len(job.z), job.config), []).append(at)
        frames: dict[int, np.ndarray] = {}
        for (_, config), places in alike.items():  # pyright: ignore
            metrics().batch.observe(len(places), {"of": "render"})
            windows = [window_of(*jobs[at]) for at in places]
            frames |= dict(zip(places, self._renderer.windows(windows, config), strict=True))
        return [frames[at] for at in range(len(jobs))]

    async def _pass(self, work: Callable[[], T]) -> T:
        """In its turn, and timed for the health check."""

        def timed() -> T:
            self._begun = time.monotonic()
            try:
                return work()
            finally:
                self._begun = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises."""
        begun = self._begun
        if begun is not None and (busy_s := time.monotonic() - begun) > self._stuck_s:
            raise RuntimeError(f"the renderer has been in one batch for {busy_s:.0f} s")


def window_of(job: WindowJob, reference: Reference) -> Window:
    return Window(
        reference=reference,
        z=torch.tensor(job.z),
        origin=None if job.origin is None else torch.tensor(job.origin),
        seed=job.seed,
        first_frame=job.first_frame,
    )
