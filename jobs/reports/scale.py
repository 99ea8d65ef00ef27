"""Define the options of `jobs/report.py scale`, and the formulas behind its tables.

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

Tests compare the activations with torch's own tracker, at the 7B model's widths too, and the states with a DeepSpeed
engine and DeepSpeed's estimators.

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

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class ReportScale:
    """Plan stage 2 on other machines: memory, step time and data by formula and simulation.

    Example: python jobs/report.py scale paper-7b --gpus H200 --ranks 16 64
    """

    preset: tyro.conf.Positional[Literal["small", "paper-7b"]] = "paper-7b"
    """Preset whose model is planned."""
    gpus: tuple[Literal["A100", "H100", "H200"], ...] = ("A100", "H100", "H200")
    """GPUs to plan for."""
    ranks: tuple[int, ...] = (16, 64, 256, 1024)
    """Numbers of ranks to plan for."""
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    """ZeRO stages to plan for. The trainer uses 2."""
    budgets: tuple[int, ...] = (4096, 8192, 16_384)
    """Padded frames of a micro-batch, for the table of memory. The other tables use the preset's."""
    audio_layers: int = 4
    """Audio layers L of the corpus, at least 1. F is 768 and D is 512."""
    efficiency: float | None = None
    """Share of the GPU's peak that arithmetic is assumed to reach, within 0..1. By default 0.4."""
    output: Path = BENCHMARKS / "scale.json"
    """JSON file for the tables."""

    def execute(self) -> int:
        import numpy as np

        from benches.data import paper_lengths
        from xactor_platform.data.index import CorpusShape
        from xactor_platform.scale.report import CLIPS_A_SHARD, memory_table, plan_table, time_table
        from xactor_platform.scale.step_time import EFFICIENCY
        from xactor_platform.training.stage2_config import PRESETS, Stage2Config

        config: Stage2Config = PRESETS[self.preset]()
        shape = CorpusShape(
            latent_width=512,
            audio_layers=self.audio_layers,
            audio_width=768,
            motion_dtype="float16",
            audio_dtype="float16",
        )
        lengths = paper_lengths()
        shard = np.arange(len(lengths)) // CLIPS_A_SHARD
        machines = (self.gpus, self.ranks)
        efficiency = EFFICIENCY if self.efficiency is None else self.efficiency
        memories = memory_table(config, shape, *machines, self.stages, self.budgets)
        times = time_table(config, shape, *machines, self.stages, efficiency)
        plans = plan_table(config, shape, *machines, lengths, shard, efficiency)
        for table in (memories, times, plans):
            print(table.text(), end="\n\n", flush=True)
        options = {**dataclasses.asdict(self), "output": None}
        tables = {"memory": memories.rows, "step_time": times.rows, "plan": plans.rows}
        save_results(self.output, {"options": options, **tables})
        return 0
