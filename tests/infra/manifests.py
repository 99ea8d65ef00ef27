"""Read the files of infra/ and fill in their placeholders."""

import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
FILLED = {
    "IMAGE": "registry.example/xactor:0.1.0",
    "BUCKET": "bucket",
    "RAY_AUTH_TOKEN": "token",
    "XACTOR_API_KEYS": "key",
    "REDIS_PASSWORD": "password",
}

# vCPUs, GiB of memory and GPUs by instance type, from AWS's documentation.
INSTANCES = {"m6i.2xlarge": (8, 32, 0), "p4d.24xlarge": (96, 1152, 8), "p4de.24xlarge": (96, 1152, 8)}


@functools.cache
def read(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file.

    Raises:
        KeyError: The file has a placeholder without a value.
    """
    return list(yaml.safe_load_all(re.sub(r"\$\{(\w+)\}", lambda found: FILLED[found[1]], path.read_text())))


def launcher_config() -> dict[str, Any]:
    """Return a copy of ray_cluster.yaml."""
    return copy.deepcopy(read(ROOT / "ray_cluster.yaml")[0])


def resources() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of infra/kuberay with its file's name."""
    for path in sorted(KUBERAY.glob("*.yaml")):
        for document in read(path):
            yield path.name, document


def cluster_specs() -> dict[str, dict[str, Any]]:
    """Return the spec of every Ray cluster by the name of its file.

    It is a RayCluster's own spec, or a part of the spec of a RayJob or RayService.
    """
    fields = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    return {
        name: document["spec"][fields[document["kind"]]] if document["kind"] in fields else document["spec"]
        for name, document in resources()
        if document["apiVersion"] == "ray.io/v1"
    }


def templates(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a cluster's pod templates: `head`, and the worker groups by their names."""
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"], **workers}


def launched(
    config: dict[str, Any], demands: list[tuple[dict[str, float], dict[str, str]]]
) -> dict[str, int]:
    """Return how many nodes of each group Ray's autoscaler would start.

    Args:
        config: The autoscaler's config, as the launcher or KubeRay makes it.
        demands: Demands of resources, each with its label selector.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    is_in = LabelSelectorOperator.LABEL_OPERATOR_IN
    requests = [
        ResourceRequestUtil.make(
            wanted, label_selectors=[[(key, is_in, [value]) for key, value in selector.items()]]
        )
        for wanted, selector in demands
    ]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs(),
            max_num_nodes=config["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count(requests),
        )
    )
    assert not reply.infeasible_resource_requests, "no group can ever satisfy some of these demands"
    return {request.instance_type: request.count for request in reply.to_launch}
