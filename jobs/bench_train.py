"""Measures training: python jobs/bench_train.py [tiny|small|paper-7b] [--rounds N] [--hidden N]"""

import _checkout

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import ray
import tyro

from xactor_platform.cluster.environment import environment
from benches.train import compare_attention, compare_loop
from xactor_platform.training.config import ScaleConfig
from xactor_platform.cluster.connect import connect
from xactor_platform.training.stage2_config import PRESETS, Stage2Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchTrain:
    """The loop's step beside the same DeepSpeed engine on one resident batch, and both attentions."""

    preset: Literal["tiny", "small", "paper-7b"] = "tiny"
    """Whose model and batch; its backbone is random, which takes as long."""
    hidden: int | None = None
    """Another width for the model, with layers and heads to match."""
    rounds: int = 12
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/train.json"


def main(args: BenchTrain) -> None:
    connect(_checkout.PY_MODULES)
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    config: Stage2Config = PRESETS[args.preset]()
    model = dataclasses.replace(config.model, backbone=None)
    if args.hidden:
        model = dataclasses.replace(
            model, hidden=args.hidden, heads=args.hidden // 64, kv_heads=1, mlp=4 * args.hidden
        )
    scale = config.scale if use_gpu else ScaleConfig(ranks=1, cpus_per_rank=1, threads=1)
    scale = dataclasses.replace(scale, ranks=1)
    config = dataclasses.replace(config, model=model, scale=scale)
    loop = compare_loop(config, rounds=args.rounds, use_gpu=use_gpu)
    attention = compare_attention(config, rounds=args.rounds)
    report = {
        "command": " ".join(["python", "jobs/bench_train.py", *sys.argv[1:]]),
        "environment": environment(),
        "loop": loop,
        "attention": attention,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    mfu = "" if loop["mfu"] is None else f", MFU {loop['mfu']:.1%}"
    print(
        f"{loop['parameters'] / 1e6:.1f} M parameters, {loop['frames_per_s']:,.0f} frames/s{mfu}\n"
        f"a step of the loop takes {loop['ratio']:.3f} of the resident batch's, "
        f"{loop['data_wait_share']:.1%} of it waiting for data\n"
        f"FlexAttention takes {attention['flex_over_sdpa']:.2f} of SDPA's time on {attention['device']}"
        f"{'' if attention['backward'] else ' (forward only: it has no backward there)'}\n{args.output}"
    )


if __name__ == "__main__":
    main(tyro.cli(BenchTrain))
