"""Describe the GPUs and nodes that a run is planned for, with figures from their data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Describe a GPU and its node."""

    name: str
    """Name of the GPU."""
    memory_bytes: float
    """Memory of one GPU in bytes."""
    flops: float
    """Dense bf16 operations per second of one GPU."""
    nvlink_bytes_s: float
    """Bytes per second of one GPU's NVLink, in each direction."""
    network_bytes_s: float
    """Bytes per second of one node's network, in each direction. Gradients between nodes and the data stream share the
    network."""
    gpus: int
    """Number of GPUs of one node."""
    cpus: int
    """Number of CPUs of one node."""


# Machines by name of the GPU. The nodes are AWS instances: p4de.24xlarge, p5.48xlarge and p5en.48xlarge.
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
