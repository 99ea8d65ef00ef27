"""The Serve application: `serve run xactor_serving.app:build model=DIR`, or an application of a Serve config file.

    ingress (FastAPI)  ->  motion (chunks of latents)
                       ->  render (windows of frames)

Each has replicas, resources and autoscaling of its own; a Serve config file sets them by these names.
"""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from xactor_serving.api import make_api
from xactor_serving.motion import Motion
from xactor_serving.render import Render
from xactor_serving.replicas import Replicas
from xactor_serving.videos import Limits, Videos

# An ingress that is replaced, as with new weights, first ends the videos that it is making.
DRAIN_S = 600
# Where a config file does not say otherwise. Ingresses report their load every 10 s, in samples of its moment: a
# replica comes when two reports in a row ask for it, not when one sample met a burst.
_SCALING = {
    "min_replicas": 1,
    "max_replicas": 4,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 12,
    "downscale_delay_s": 60,
    "look_back_period_s": 12,
}


@serve.deployment(
    name="ingress",
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=DRAIN_S,
)
@serve.ingress()
class Ingress:
    """One replica of the HTTP face."""

    def __init__(
        self,
        motion: DeploymentHandle,
        render: DeploymentHandle,
        *,
        limits: Limits,
        keys: tuple[str, ...],
        timeout_s: float,
        patience_s: float,
    ):
        replicas = Replicas(motion, render, timeout_s=timeout_s, patience_s=patience_s)
        self._videos, self._keys = Videos(replicas, limits), keys

    async def drain(self) -> None:
        """Takes no more videos, and waits for those in the making: both models must outlive them."""
        await self._videos.drain()

    def __serve_build_asgi_app__(self):
        return make_api(self._videos, self._keys)

    def __del__(self):
        self._videos.close()


class Arguments(BaseModel):
    """What the application is built with.

    Attributes:
        model: a pipeline's folder, or its URI.
        motion_replicas, render_replicas: how many; 0 for as many as the load needs, up to 4. A config file says more.
        cpus: that a motion or render replica takes of its machine's.
        streams_per_motion: chunks that a motion replica has in the making. steps_per_pass: of how many at a time.
        windows_per_render: that a render replica has waiting or in the making. windows_per_pass: of how many at a time.
        timeout_s: for a chunk or a window, the wait for its turn included; what hangs is found by `stuck_s`.
        patience_s: how long replicas that fail or are full are tried again.
        stuck_s: a forward pass that takes longer fails its replica's health check.
        limits: see `Limits`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    motion_replicas: int = Field(default=1, ge=0)
    render_replicas: int = Field(default=1, ge=0)
    cpus: float = Field(default=1, ge=0)
    streams_per_motion: int = Field(default=16, ge=1)
    steps_per_pass: int = Field(default=8, ge=1)
    windows_per_render: int = Field(default=8, ge=1)
    windows_per_pass: int = Field(default=4, ge=1)
    timeout_s: float = Field(default=600, gt=0)
    patience_s: float = Field(default=60, gt=0)
    stuck_s: float = Field(default=60, gt=0)
    limits: dict[str, Any] = Field(default_factory=dict)


def build(args: Arguments) -> Application:
    """The application. `XACTOR_API_KEYS`, a list parted by commas, makes keys needed."""
    keys = tuple(key.strip() for key in os.environ.get("XACTOR_API_KEYS", "").split(",") if key.strip())
    actor = {"num_cpus": args.cpus}
    motion = Motion.options(
        **_replicas(args.motion_replicas),
        ray_actor_options=actor,
        max_ongoing_requests=args.streams_per_motion,
    ).bind(
        args.model,
        max_streams=args.streams_per_motion,
        max_batch=args.steps_per_pass,
        stuck_s=args.stuck_s,
    )
    render = Render.options(
        **_replicas(args.render_replicas),
        ray_actor_options=actor,
        max_ongoing_requests=args.windows_per_render,
    ).bind(args.model, max_batch=args.windows_per_pass, stuck_s=args.stuck_s)
    limits = Limits(**args.limits)
    return Ingress.options(max_ongoing_requests=4 * limits.max_videos).bind(
        motion, render, limits=limits, keys=keys, timeout_s=args.timeout_s, patience_s=args.patience_s
    )


def _replicas(count: int) -> dict[str, Any]:
    return {"num_replicas": count} if count else {"autoscaling_config": _SCALING}
