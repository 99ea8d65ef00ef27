"""Build the Serve application. `serve run xactor_serving.app:build model=DIR` or a Serve config file starts it.

    ingress (FastAPI)  ->  motion (chunks of latents)
                       ->  render (windows of frames)

The latents are the numbers that describe a face's motion. A chunk or a window is a group of frames that a model
denoises together. Each deployment has its own replicas, resources and autoscaling. A Serve config file sets them under
the deployments' names: `ingress`, `motion` and `render`.
"""

import os
from typing import Any

from ray.serve import Application

from xactor.model_folder import COMPONENTS, check_origins, located
from xactor_serving.arguments import MAX_AUTOSCALED_REPLICAS, Arguments
from xactor_serving.ingress import Ingress
from xactor_serving.motion_replica import Motion
from xactor_serving.render_replica import Render

# Autoscaling of a deployment if the argument for its number of replicas is 0. A config file may override these options.
# Ingress replicas report samples of their load every 10 s. A replica is added only when two reports in a row ask for
# it, so that a single report during a burst adds none.
_AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": MAX_AUTOSCALED_REPLICAS,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 12,
    "downscale_delay_s": 60,
    "look_back_period_s": 12,
}
# An ingress replica gets many more requests than its limits allow videos and uploads. It refuses the excess with its
# own error answers, and answers probes at any load.
_MAX_REQUESTS = 10_000


def build(args: Arguments) -> Application:
    """Return the application.

    The environment variable `XACTOR_API_KEYS` holds the accepted API keys, comma-separated. If the variable is not set,
    no key is needed.

    Raises:
        ValueError: The components of the model do not fit together.
    """
    # Each replica loads only some of the components, so it cannot tell whether they fit.
    check_origins(dict.fromkeys(COMPONENTS, located(args.model)))
    keys = tuple(key.strip() for key in os.environ.get("XACTOR_API_KEYS", "").split(",") if key.strip())
    actor_options = {"num_cpus": args.cpus, "num_gpus": args.gpus}
    motion = Motion.options(
        **_replicas(args.motion_replicas),
        ray_actor_options=actor_options,
        max_ongoing_requests=args.motion_max_streams,
    ).bind(
        args.model,
        device=args.device,
        max_streams=args.motion_max_streams,
        max_batch=args.motion_max_batch,
        stuck_s=args.stuck_s,
    )
    render = Render.options(
        **_replicas(args.render_replicas),
        ray_actor_options=actor_options,
        max_ongoing_requests=args.render_max_windows,
    ).bind(args.model, device=args.device, max_batch=args.render_max_batch, stuck_s=args.stuck_s)
    return Ingress.options(max_ongoing_requests=_MAX_REQUESTS).bind(
        motion,
        render,
        limits=args.limits,
        keys=keys,
        cors_origins=args.cors_origins,
        call_timeout_s=args.call_timeout_s,
        retry_s=args.retry_s,
    )


def _replicas(count: int) -> dict[str, Any]:
    """Return a deployment's options for `count` replicas, or for autoscaling if `count` is 0."""
    return {"num_replicas": count} if count else {"autoscaling_config": _AUTOSCALING}
