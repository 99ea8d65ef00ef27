"""Check that a cluster has room for a job, and ask its autoscaler for the room of a training."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Literal

import ray
from ray.autoscaler.sdk import request_resources

DATA_CPUS = 1.0
"""CPUs that a training leaves to Ray Data, which waits for ever without one."""

_POLL_S = 1.0


def check_pools_fit(min_cpus: float) -> None:
    """Raise ValueError if the Ray that this process started has fewer CPUs than one actor of each stage needs.

    A cluster that RAY_ADDRESS names is not checked: it may grow.
    """
    available = ray.cluster_resources().get("CPU", 0.0)
    if min_cpus > available and "RAY_ADDRESS" not in os.environ:
        raise ValueError(
            f"this machine has {available:g} CPUs, one actor a stage needs {min_cpus:g}: "
            f"lower --pools.*.cpus or --pools.*.min"
        )


@contextlib.contextmanager
def room_for_ranks(
    *,
    ranks: int,
    min_ranks: int | None,
    cpus_per_rank: float,
    device: Literal["auto", "cpu", "gpu"],
    timeout_s: float,
) -> Iterator[bool]:
    """Ask the cluster to grow to what the ranks and Ray Data need, and wait until there is room for them.

    The request is withdrawn when the block ends. The value given tells whether each rank gets a GPU.

    Args:
        ranks: worker processes that the cluster should grow to.
        min_ranks: the block starts once there is room for so many; None is all of them.
        cpus_per_rank: CPUs of each.
        device: `gpu` needs one GPU for each rank; `auto` does so if the cluster has any GPU.
        timeout_s: how long to wait.

    Raises:
        ValueError: the room did not come. Ranks that take every CPU would wait for their data for ever.
    """
    rank = {"CPU": cpus_per_rank}
    if device == "gpu" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0):
        rank["GPU"] = 1
    # One bundle a rank, not their sum, so that nodes of the right kind are added. Ray takes whole numbers only.
    bundle = {name: math.ceil(amount) for name, amount in rank.items() if amount}
    request_resources(bundles=[*([bundle] * ranks), {"CPU": math.ceil(DATA_CPUS)}])
    try:
        yield _wait_for_room(ranks if min_ranks is None else min_ranks, cpus_per_rank, device, timeout_s)
    finally:
        # A cluster that has ended needs no withdrawal.
        with contextlib.suppress(Exception):
            request_resources(bundles=[])


def _wait_for_room(ranks: int, cpus_per_rank: float, device: str, timeout_s: float) -> bool:
    needed_cpus = ranks * cpus_per_rank + DATA_CPUS
    deadline = time.monotonic() + timeout_s
    while True:
        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        use_gpu = device == "gpu" or (device == "auto" and gpus > 0)
        if cpus >= needed_cpus and (not use_gpu or gpus >= ranks):
            return use_gpu
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    if cpus < needed_cpus:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs, but {ranks} ranks of {cpus_per_rank:g} and {DATA_CPUS:g} for reading "
            f"data need {needed_cpus:g}: lower --scale.ranks or --scale.cpus-per-rank"
        )
    raise ValueError(f"the cluster has {gpus:g} GPUs, but {ranks} ranks need one each")
