"""Check that a cluster has room for a job, and ask its autoscaler for the nodes that a training needs."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

DATA_CPUS = 1.0
"""CPUs that a training leaves to Ray Data, which waits for ever if it has no CPU."""

_POLL_S = 1.0


def check_pools_fit(min_cpus: float) -> None:
    """Raise ValueError if the pools at their smallest sizes need more CPUs than Ray has on this machine.

    If RAY_ADDRESS names a cluster, nothing is checked, because the cluster may grow.

    Args:
        min_cpus: CPUs that all pools together need at their smallest sizes.
    """
    available = ray.cluster_resources().get("CPU", 0.0)
    if min_cpus > available and "RAY_ADDRESS" not in os.environ:
        raise ValueError(
            f"this machine has {available:g} CPUs, the pools at their smallest sizes need {min_cpus:g}: "
            f"lower --pools.*.cpus or --pools.*.min"
        )


def has_placement() -> bool:
    """Return whether Ray has reserved the resources of any placement group of this job, such as those of its ranks."""
    return any(group["state"] == "CREATED" for group in _groups_of_job().values())


def remove_placements() -> None:
    """Remove all placement groups of this job. Those of a controller that was killed would stay until the job ends."""
    for number, group in _groups_of_job().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(number)))


def _groups_of_job() -> dict[str, dict[str, Any]]:
    """Return the placement groups of this job by their identifiers."""
    # The identifier of a placement group ends with that of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    return {number: group for number, group in placement_group_table().items() if number.endswith(job)}


@contextlib.contextmanager
def room_for_ranks(
    *,
    ranks: int,
    min_ranks: int | None,
    cpus_per_rank: float,
    device: Literal["auto", "cpu", "gpu"],
    timeout_s: float,
) -> Iterator[bool]:
    """Ask the cluster to grow until the ranks (a training's processes) and Ray Data fit, and wait for the room.

    The request to the autoscaler is withdrawn when the `with` block ends. The block gets True if each rank gets a GPU.

    Args:
        ranks: number of ranks that the cluster should have room for.
        min_ranks: number of ranks that must have room before the block starts. None means all `ranks`.
        cpus_per_rank: CPUs of each rank.
        device: `gpu` needs one GPU for each rank. `auto` does the same if the cluster has any GPU.
        timeout_s: seconds to wait for the room.

    Raises:
        ValueError: there is not enough room after the timeout. If the ranks took every CPU, none would be left to read
            data, and the ranks would wait for ever.
    """
    rank_resources = {"CPU": cpus_per_rank}
    if device == "gpu" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0):
        rank_resources["GPU"] = 1
    # Ask for one bundle per rank instead of one sum, so that a rank fits on each added node. Ray needs whole numbers.
    bundle = {name: math.ceil(amount) for name, amount in rank_resources.items() if amount}
    request_resources(bundles=[*([bundle] * ranks), {"CPU": math.ceil(DATA_CPUS)}])
    try:
        yield _wait_for_room(ranks if min_ranks is None else min_ranks, cpus_per_rank, device, timeout_s)
    finally:
        # If the cluster has ended, there is nothing to withdraw.
        with contextlib.suppress(Exception):
            request_resources(bundles=[])


def _wait_for_room(ranks: int, cpus_per_rank: float, device: str, timeout_s: float) -> bool:
    """Wait until the cluster has room for the ranks and Ray Data. Return whether each rank gets a GPU."""
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
    raise ValueError(f"the cluster has {gpus:g} GPUs, but {ranks} ranks need one each: lower --scale.ranks")
