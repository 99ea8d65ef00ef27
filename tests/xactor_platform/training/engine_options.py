"""Train one rank of DeepSpeed engines with different options, for test_engine, and print a digest of their weights.

python engine_options.py RANK RANKS FOLDER    (FOLDER: where the ranks find each other and save checkpoints)
"""

import hashlib
import os
import sys
from dataclasses import replace

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}

import torch
import torch.distributed as dist
from torch import nn

from xactor_platform.training import engine as engines
from xactor_platform.training.engine import make_engine, place_steps
from xactor_platform.training.train_config import TrainConfig

CONFIG = TrainConfig(learning_rate=1e-2)


class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).square().mean()


def trained(config: TrainConfig, ranks: int, *, fused: bool, folder: str | None = None) -> torch.Tensor:
    """Return the weights after six steps of two backward passes. With a folder, resume from it after three steps."""
    engines.use_fused_adam = lambda: fused

    def make():
        objective = Objective()
        return make_engine(objective, config, [list(objective.parameters())], ranks=ranks, bf16=False)

    engine = make()
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(6):
        if folder and step == 3:
            engine.save_checkpoint(folder, tag="half")
            engine = make()
            engine.load_checkpoint(folder, tag="half")
            place_steps(engine)
        for _ in range(2):
            engine.backward(engine(torch.randn(4, 32, generator=generator)), scale_wrt_gas=False)
        engine.step()
    return torch.cat([p.detach().flatten() for p in engine.module.parameters()])


def main(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    plain = trained(CONFIG, ranks, fused=False)
    overlapped = trained(replace(CONFIG, overlap_comm=True), ranks, fused=False)
    fused = trained(CONFIG, ranks, fused=True)
    resumed = trained(CONFIG, ranks, fused=True, folder=f"{folder}/checkpoint")
    start = torch.cat([p.detach().flatten() for p in Objective().parameters()])
    print(f"moved {float((plain - start).abs().mean())}")
    print(f"fused {float((fused - plain).abs().max())}")
    for name, weights in (
        ("plain", plain),
        ("overlapped", overlapped),
        ("fused", fused),
        ("resumed", resumed),
    ):
        print(f"digest {name} {hashlib.sha256(weights.numpy().tobytes()).hexdigest()}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
