"""Run the ingress deployment, the HTTP side of the service.

Its replicas load the code of neither model, so they start within seconds and need little memory.
"""

from ray import serve
from ray.serve.handle import DeploymentHandle

from xactor_serving.api import make_api
from xactor_serving.arguments import Limits
from xactor_serving.replicas import Replicas
from xactor_serving.videos import Videos

# An ingress that is replaced, for example because of new weights, first finishes its videos in progress.
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
        keys: Accepted API keys; empty where none is needed.
        call_timeout_s: Seconds for one chunk or window.
        retry_s: Seconds to retry a chunk or window.
    """

    def __init__(
        self,
        motion: DeploymentHandle,
        render: DeploymentHandle,
        *,
        limits: Limits,
        keys: tuple[str, ...],
        call_timeout_s: float,
        retry_s: float,
    ):
        replicas = Replicas(motion, render, call_timeout_s=call_timeout_s, retry_s=retry_s)
        self._videos, self._keys = Videos(replicas, limits), keys

    async def drain(self) -> None:
        """Refuse new videos and wait for those in progress. The caller keeps both models running until then."""
        await self._videos.drain()

    def __serve_build_asgi_app__(self):
        return make_api(self._videos, self._keys)

    def __del__(self):
        self._videos.close()
