"""Plans stage 2 on machines that are not here: python jobs/plan_scale.py [paper-7b|small] [--gpus H200] [--ranks 16 64]

Memory of a rank, in bytes, in the backward pass. P parameters, N ranks, H width, I the MLP's, h heads, A the audio
embedding's, D the latent's, L x F the audio features of a frame, T the context; bf16, fp32 for what Adam keeps:

    parameters      2P       sharded by N from ZeRO stage 3 on
    gradients       4P       from stage 2 on: gathered in fp32 over a step's micro-batches
    optimizer      12P       from stage 1 on: fp32 weights, two moments
    buckets         8e8      DeepSpeed's bucket of 2e8 bf16 gradients and its flat copy
    activations              of each padded frame of a micro-batch:
        backbone layer       26H + 8I + 4h + 2T; with checkpointing 2H, and the whole of one layer at a time
        audio attention      36H + 10h a layer; checkpointing leaves it alone
        around them          18H + 4LF + 6A + 8D
    overhead        4e9      CUDA, NCCL, cuBLAS, fragmentation: assumed

The tests hold the activations against torch's own tracker, at the 7B model's widths too, and the states against a
DeepSpeed engine and DeepSpeed's estimators.

Time of a global step of M micro-batches, nothing overlapping:

    compute     M/N x frames x (6P + 12THlayers, a third more of the layers with checkpointing) / (peak x efficiency)
    reduce      in units of 2P(N-1)/N over the link: 2 an all-reduce, after every micro-batch in stage 2
    gather      1 a step in stages 1 and 2

Efficiency 0.4 of the peak is an assumption (--efficiency), and so are 0.8 of NVLink's and of the network's data
sheets. The reported MFU counts 6P a frame over the whole step, as a run's metrics.jsonl does.

The simulation plans one epoch of a corpus like the paper's (160K clips of up to 10 s, 280K of 10 to 60 s) with the
platform's own plan on every number of ranks, deals it out, and lets readers with bounded read-ahead race the ranks.
They read from an object store whose requests take 30 ms in the median, then 80 MB/s: assumed too.
"""

import _checkout

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benches.data import paper_lengths
from xactor_platform.cluster.environment import environment
from xactor_platform.data.index import CorpusShape
from xactor_platform.scale.report import CLIPS_A_SHARD, memory_table, plan_table, time_table
from xactor_platform.scale.step_time import EFFICIENCY
from xactor_platform.training.stage2_config import PRESETS, Stage2Config


@dataclass(frozen=True, kw_only=True)
class PlanScale:
    """Memory, step time and the data's way of stage 2, by formula and simulation."""

    preset: tyro.conf.Positional[Literal["small", "paper-7b"]] = "paper-7b"
    """Whose model."""
    gpus: tuple[Literal["A100", "H100", "H200"], ...] = ("A100", "H100", "H200")
    ranks: tuple[int, ...] = (16, 64, 256, 1024)
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    """Of ZeRO. The trainer's is 2."""
    budgets: tuple[int, ...] = (4096, 8192, 16_384)
    """Padded frames of a micro-batch, for the table of memory; times are of the preset's."""
    audio_layers: int = 4
    """L, of the corpus; F is 768, D 512."""
    efficiency: float = EFFICIENCY
    """Share of the GPUs' peak that arithmetic is assumed to reach."""
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/scale.json"


def main(args: PlanScale) -> None:
    config: Stage2Config = PRESETS[args.preset]()
    shape = CorpusShape(
        latent_width=512,
        audio_layers=args.audio_layers,
        audio_width=768,
        motion_dtype="float16",
        audio_dtype="float16",
    )
    lengths = paper_lengths()
    shard = np.arange(len(lengths)) // CLIPS_A_SHARD
    memories = memory_table(config, shape, args.gpus, args.ranks, args.stages, args.budgets)
    times = time_table(config, shape, args.gpus, args.ranks, args.stages, args.efficiency)
    plans = plan_table(config, shape, args.gpus, args.ranks, lengths, shard, args.efficiency)
    for table in (memories, times, plans):
        print(table.text(), end="\n\n", flush=True)
    report = {
        "command": " ".join(["python", "jobs/plan_scale.py", *sys.argv[1:]]),
        "environment": environment(),
        "options": {**dataclasses.asdict(args), "output": None},
        "memory": memories.rows,
        "step_time": times.rows,
        "plan": plans.rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(args.output)


if __name__ == "__main__":
    main(tyro.cli(PlanScale))
