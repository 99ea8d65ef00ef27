"""Run the ingress deployment, the HTTP side of the service.

Its replicas do not load the code of the models, so they start within seconds and need little memory.
"""

from ray import serve
from ray.serve.handle import DeploymentHandle

from xactor_serving.api import make_api
from xactor_serving.arguments import Limits
from xactor_serving.replicas import Replicas
from xactor_serving.videos import Videos

# Maximum time, in seconds, in which an ingress replica finishes its videos in progress before it ends. Replicas end,
# for example, when a deployment with new weights replaces them.
DRAIN_S = 600


@serve.deployment(
    name="ingress",
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=DRAIN_S,
)
@serve.ingress()
class Ingress:
    """Run one replica of the HTTP API.

    Args:
        motion: Handle of the motion deployment.
        render: Handle of the render deployment.
        limits: Limits of this replica.
        keys: Accepted API keys; empty if none is needed.
        cors_origins: Origins of other web pages that may use the API.
        call_timeout_s: Maximum seconds for one call to a model, which makes a chunk of motion or a window of frames.
        retry_s: Seconds during which a call is retried if its replica failed or was full.
    """

    def __init__(
        self,
        motion: DeploymentHandle,
        render: DeploymentHandle,
        *,
        limits: Limits,
        keys: tuple[str, ...],
        cors_origins: tuple[str, ...],
        call_timeout_s: float,
        retry_s: float,
    ):
        replicas = Replicas(motion, render, call_timeout_s=call_timeout_s, retry_s=retry_s)
        self._videos, self._keys, self._cors_origins = Videos(replicas, limits), keys, cors_origins

    async def drain(self) -> None:
        """Refuse new videos and wait until those in progress are finished. Both models must run until this returns."""
        await self._videos.drain()

    def __serve_build_asgi_app__(self):
        """Return the ASGI application of this replica. Ray Serve calls this method after the constructor."""
        return make_api(self._videos, self._keys, self._cors_origins)

    def __del__(self):
        self._videos.close()
