"""Room for a training in a cluster: asked of its autoscaler, waited for, and given back."""

import contextlib
import math
import time
from collections.abc import Iterator

import ray
from ray.autoscaler.sdk import request_resources

from xactor_platform.training.config import StageConfig

DATA_CPUS = 1.0  # Ray Data must have one, or it waits for ever


@contextlib.contextmanager
def room_for(config: StageConfig) -> Iterator[bool]:
    """Asks the cluster to grow to what the ranks and the data need, and waits for it. Gives whether ranks get GPUs.

    The wish is withdrawn at the end. ValueError with both numbers where it does not come: a training that takes every
    CPU would wait for its data for ever.
    """
    scale = config.scale
    rank = {"CPU": scale.cpus_per_rank}
    if scale.device == "gpu" or (scale.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0):
        rank["GPU"] = 1
    rank = {name: amount for name, amount in rank.items() if amount}
    # By what each rank needs and not as a sum, so that nodes of the right kind come. Whole numbers is all it takes.
    bundles = [{name: math.ceil(amount) for name, amount in rank.items()}] * scale.ranks
    request_resources(bundles=[*bundles, {"CPU": math.ceil(DATA_CPUS)}])
    try:
        yield _wait_for_room(config)
    finally:
        with contextlib.suppress(Exception):  # a cluster that is gone wishes for nothing
            request_resources(bundles=[])


def _wait_for_room(config: StageConfig) -> bool:
    scale = config.scale
    ranks = scale.ranks if scale.min_ranks is None else scale.min_ranks
    need = ranks * scale.cpus_per_rank + DATA_CPUS
    deadline = time.monotonic() + scale.start_timeout_s
    while True:
        have = ray.cluster_resources()
        use_gpu = scale.device == "gpu" or (scale.device == "auto" and have.get("GPU", 0) > 0)
        enough_gpus = not use_gpu or have.get("GPU", 0) >= ranks
        if have.get("CPU", 0) >= need and enough_gpus:
            return use_gpu
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    if have.get("CPU", 0) < need:
        raise ValueError(
            f"the cluster has {have.get('CPU', 0):g} CPUs, but {ranks} ranks of {scale.cpus_per_rank:g} and "
            f"{DATA_CPUS:g} for reading data need {need:g}: lower --scale.ranks or --scale.cpus-per-rank"
        )
    raise ValueError(f"the cluster has {have.get('GPU', 0):g} GPUs, but {ranks} ranks need one each")
