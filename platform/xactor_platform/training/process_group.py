"""Join the ranks in a torch process group without importing torch in the driver or in Ray Train's controller.

A rank is one worker process of a training. Ray's own TorchConfig joins them too, but a process that unpickles a
TorchConfig imports torch, which delays the start of a training by seconds.
"""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

LEAVE_TIMEOUT_S = 30.0
"""Seconds to wait for the ranks to leave the group."""


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Configure the process group of the ranks."""

    backend: str = "gloo"
    """`nccl` between GPUs, `gloo` between CPUs."""
    timeout_s: int = 1800
    """Seconds after which a collective fails if a rank has not joined it."""

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup


class ProcessGroup(Backend):
    """Create and destroy the process group. Ray Train's controller calls these methods."""

    # Every rank sees all GPUs that the ranks of its node have, as with Ray's own torch backend.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:  # pyright: ignore
        address, port = worker_group.execute_single(0, get_address_and_port)
        config = backend_config
        worker_group.execute(_join, config.backend, address, port, config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:  # pyright: ignore
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_TIMEOUT_S)


def _join(backend: str, address: str, port: int, timeout_s: int) -> None:
    """Join the process group, whose ranks meet at the given address of rank 0. Every rank runs this function."""
    import ray.train
    from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    config._setup_torch_process_group(backend, rank, ranks, "env://", timeout_s)


def _leave() -> None:
    """Leave the process group. Every rank runs this function."""
    import torch.distributed as dist
    from ray.train.torch import config

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    config._shutdown_torch(destroy_process_group=ranks > 1)
