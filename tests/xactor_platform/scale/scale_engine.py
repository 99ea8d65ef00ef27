"""Run one rank of a DeepSpeed engine for test_scale, and print the bytes of its tensors.

The line `held P H B` has the number of parameters, the bytes of all tensors after a backward pass, and the peak of the
bytes that this pass made.

python scale_engine.py RANK RANKS FILE    (FILE: where the ranks find each other)
"""

import gc
import os
import sys

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}

import torch
import torch.distributed as dist
from torch import nn

from xactor_platform.scale.live_memory import LiveMemory
from xactor_platform.training.engine import make_engine
from xactor_platform.training.train_config import TrainConfig


class Objective(nn.Module):
    """Stack layers of one size, as a transformer does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.float().square().mean()


def held_bytes() -> int:
    """Return the bytes of all tensors that Python reaches, each storage counted once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def main(rank: int, ranks: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    objective = Objective()
    parameters = sum(p.numel() for p in objective.parameters())
    engine = make_engine(objective, TrainConfig(), [list(objective.parameters())], ranks=ranks, bf16=True)
    held = peak = 0
    # Adam has its moments after the first step.
    for _ in range(2):
        loss = engine(torch.randn(4, 512, dtype=torch.bfloat16))
        with LiveMemory() as live:
            live.exclude(objective.parameters())
            engine.backward(loss, scale_wrt_gas=False)
        held, peak = held_bytes(), live.peak_bytes
        engine.step()
    print(f"held {parameters} {held} {peak}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
