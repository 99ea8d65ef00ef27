"""The GPUs and nodes that a run is planned for, from their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A GPU and the node that it comes in.

    Args:
        memory_bytes: of one GPU.
        flops: bf16, dense, a second.
        nvlink_bytes_s: of one GPU, each way.
        network_bytes_s: of one node, each way; gradients between nodes and the data's stream share it.
        gpus: of one node.
        cpus: of one node.
    """

    name: str
    memory_bytes: float
    flops: float
    nvlink_bytes_s: float
    network_bytes_s: float
    gpus: int
    cpus: int


# AWS's p4de.24xlarge, p5.48xlarge and p5en.48xlarge.
MACHINES = {
    "A100": Machine(
        name="A100",
        memory_bytes=80 * 2**30,
        flops=312e12,
        nvlink_bytes_s=300e9,
        network_bytes_s=50e9,
        gpus=8,
        cpus=96,
    ),
    "H100": Machine(
        name="H100",
        memory_bytes=80 * 2**30,
        flops=989e12,
        nvlink_bytes_s=450e9,
        network_bytes_s=400e9,
        gpus=8,
        cpus=192,
    ),
    "H200": Machine(
        name="H200",
        memory_bytes=141e9,
        flops=989e12,
        nvlink_bytes_s=450e9,
        network_bytes_s=400e9,
        gpus=8,
        cpus=192,
    ),
}
