"""Define the options of `jobs/report.py scale`, and explain the formulas behind its tables.

Symbols: P parameters, N ranks, M micro-batches of a global step (one optimizer step over all ranks), T frames of
context. Widths: H of the backbone, I of its MLP, A of the audio embedding, D of a motion latent. A frame has L x F
audio features. h is the number of attention heads. Weights and activations are bf16; the states of Adam are fp32. In
the formulas a stage is a stage of DeepSpeed's ZeRO. (The name of the planned training, stage 2, is unrelated.)

Memory of one rank in the backward pass, in bytes:

    parameters      2P       divided by N in ZeRO stage 3
    gradients       4P       divided by N from stage 2 on; accumulated in fp32 over a step's micro-batches
    optimizer      12P       divided by N from stage 1 on; fp32 weights and two moments
    buckets         8e8      DeepSpeed's bucket of 2e8 bf16 gradients and a flat copy of the bucket
    activations              for each padded frame of a micro-batch:
        backbone layer       26H + 8I + 4h + 2T
        audio attention      36H + 10h per layer
        both, checkpointed   2H per layer, plus all activations of one layer and its audio attention and 44H
        other parts          18H + 4LF + 6A + 8D
    overhead        4e9      CUDA, NCCL, cuBLAS and fragmentation (an assumption)

Tests compare the activations with torch's own memory tracker, at the widths of the 7B model too. They also compare the
parameters, gradients and optimizer states with a DeepSpeed engine and with DeepSpeed's estimators.

Time of a global step, if communication and computation do not overlap:

    compute     M/N x frames x (6P + 12 x T x H x layers) / (peak x efficiency), with the number of frames in a
                micro-batch; checkpointing adds a third of the part of the layers and the audio attentions
    reduce      2 units for each all-reduce: one per step in stages 0 and 1, one per micro-batch of a rank in stage 2;
                1 unit for each reduce-scatter: one per micro-batch of a rank in stage 3
    gather      1 unit per step in stages 1 and 2; 2 units per micro-batch of a rank in stage 3

    overlapped  with --train.overlap-comm, reducing runs during the backward passes, except for the last bucket

A unit is the time to send 2P(N-1)/N bytes over the link between the ranks. Two assumptions: arithmetic reaches 0.4 of
the GPU's peak (--efficiency), and communication reaches 0.8 of the speeds in the data sheets of NVLink and the network.
The reported MFU (model FLOPs utilisation) counts 6P FLOPs per frame over the time of the whole step, as in a run's
metrics.jsonl.

The simulation plans one epoch of a corpus like the paper's (160K clips of up to 10 s, 280K clips of 10 to 60 s), with
the function that plans real trainings. It distributes the plan over each number of ranks. It then simulates readers
that supply the ranks and read ahead by a bounded amount. The readers use an object store that answers after 30 ms
(median) and then sends 80 MB/s (assumptions).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class ReportScale:
    """Plan stage 2 on other machines: estimate memory, step time and data by formula and simulation.

    Stage 2 is the training of the motion model.

    Example: python jobs/report.py scale paper-7b --gpus H200 --ranks 16 64
    """

    preset: tyro.conf.Positional[Literal["small", "paper-7b"]] = "paper-7b"
    """Preset whose model is planned."""
    gpus: tuple[Literal["A100", "H100", "H200"], ...] = ("A100", "H100", "H200")
    """GPUs to plan for."""
    ranks: tuple[int, ...] = (16, 64, 256, 1024)
    """Numbers of ranks to plan for."""
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    """Stages of DeepSpeed's ZeRO to plan for. The trainer uses ZeRO stage 2."""
    budgets: tuple[int, ...] = (4096, 8192, 16_384)
    """Numbers of padded frames in a micro-batch, for the memory table. The other tables use the preset's number."""
    audio_layers: int = 4
    """Number of layers of the corpus's audio features, at least 1. A motion latent has 512 numbers per frame."""
    audio_width: int = 1024
    """Numbers of each layer per frame, at least 1: 1024 for wav2vec2-large, 768 for wav2vec2-base."""
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
            audio_width=self.audio_width,
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
