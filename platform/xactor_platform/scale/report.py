"""Make tables for planning a training of the motion model: memory, step time, and the data of an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xactor_platform.data.index import CorpusShape
from xactor_platform.data.plan import PlanConfig
from xactor_platform.scale.machine import MACHINES
from xactor_platform.scale.memory import memory, sizes_of
from xactor_platform.scale.simulation import simulate_plan, simulate_stream
from xactor_platform.scale.step_time import flops_per_frame, step_time
from xactor_platform.training.stage2_config import Stage2Config

# Number of clips in each shard of the corpus that is assumed for the plan.
CLIPS_A_SHARD = 256
# Bytes of a gigabyte.
GB = 1e9


@dataclass(frozen=True)
class Table:
    """Hold a table whose rows have the same columns."""

    title: str
    """Line above the table."""
    rows: list[dict[str, Any]]
    """Values by column."""

    def text(self) -> str:
        """Return the table as aligned text."""
        columns = list(self.rows[0])
        cells = [[_cell(row[column]) for column in columns] for row in self.rows]
        widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in [columns, *cells]
        ]
        return "\n".join([self.title, *lines])


def memory_table(
    config: Stage2Config,
    shape: CorpusShape,
    gpus: Sequence[str],
    ranks: Sequence[int],
    stages: Sequence[int],
    budgets: Sequence[int],
) -> Table:
    """Return a table of the memory in GB that a rank needs, and of the types of GPU that have enough memory.

    Args:
        config: the configuration of the training.
        shape: the shape of a frame of the corpus.
        gpus: names in MACHINES.
        ranks: the numbers of ranks to tabulate.
        stages: ZeRO stages.
        budgets: numbers of padded frames in a micro-batch.
    """
    sizes, rows = sizes_of(config.model, shape), []
    for stage in stages:
        # ZeRO stage 0 takes the same memory on any number of ranks.
        ranks_of_stage = ranks if stage else ranks[:1]
        for n in ranks_of_stage:
            for budget in budgets:
                for checkpointing in (True, False):
                    found = memory(
                        sizes,
                        ranks=n,
                        stage=stage,
                        budget_frames=budget,
                        context_frames=config.model.context_frames,
                        checkpointing=checkpointing,
                    )
                    fits = [name for name in gpus if found.total <= MACHINES[name].memory_bytes]
                    rows.append(
                        {
                            "zero": stage,
                            "ranks": n,
                            "frames": budget,
                            "checkpointing": checkpointing,
                            "states_gb": found.states / GB,
                            "activations_gb": found.activations / GB,
                            "total_gb": found.total / GB,
                            "fits": " ".join(fits) or "-",
                        }
                    )
    return Table(
        f"Memory of a rank, {sizes.parameters / 1e9:.2f} G parameters, context {config.model.context_frames}",
        rows,
    )


def time_table(
    config: Stage2Config,
    shape: CorpusShape,
    gpus: Sequence[str],
    ranks: Sequence[int],
    stages: Sequence[int],
    efficiency: float,
) -> Table:
    """Return a table of the time of a global step, which is one optimizer step of all ranks together.

    If the number of ranks does not divide the config's number of micro-batches, each rank gets one micro-batch.

    Args:
        config: the configuration of the training.
        shape: the shape of a frame of the corpus.
        gpus: names in MACHINES.
        ranks: the numbers of ranks to tabulate.
        stages: ZeRO stages.
        efficiency: fraction of its peak FLOP/s that a GPU reaches between two reductions of gradients.
    """
    sizes, rows = sizes_of(config.model, shape), []
    for name in gpus:
        for stage in stages:
            for n in ranks:
                found = step_time(
                    sizes,
                    MACHINES[name],
                    ranks=n,
                    stage=stage,
                    micro_batches=_micro_batches(config, n),
                    budget_frames=config.train.budget_frames,
                    context_frames=config.model.context_frames,
                    checkpointing=config.train.gradient_checkpointing,
                    efficiency=efficiency,
                )
                rows.append(
                    {
                        "gpu": name,
                        "zero": stage,
                        "ranks": n,
                        "compute_s": found.compute_s,
                        "reduce_s": found.reduce_s,
                        "gather_s": found.gather_s,
                        "step_s": found.total_s,
                        "overlapped_step_s": found.total_s - found.hidden_s,
                        "frames_per_s": found.frames_per_s,
                        "mfu": found.mfu,
                    }
                )
    return Table(f"A global step, micro-batches of {config.train.budget_frames} frames", rows)


def plan_table(
    config: Stage2Config,
    shape: CorpusShape,
    gpus: Sequence[str],
    ranks: Sequence[int],
    lengths: np.ndarray,
    shard: np.ndarray,
    efficiency: float,
) -> Table:
    """Return a table of an epoch's plan and of the data stream, one row per number of ranks and type of GPU.

    Args:
        config: the configuration of the training.
        shape: the shape of a frame of the corpus.
        gpus: names in MACHINES.
        ranks: the numbers of ranks to tabulate.
        lengths: number of frames of each clip, int [clips].
        shard: number of the shard of each clip, int [clips].
        efficiency: fraction of its peak FLOP/s that a GPU reaches between two reductions of gradients.
    """
    sizes, rows = sizes_of(config.model, shape), []
    flops = flops_per_frame(
        sizes, config.model.context_frames, checkpointing=config.train.gradient_checkpointing
    )
    for n in ranks:
        plan_config = _plan_config(config, n)
        facts, plan, costs = simulate_plan(lengths, shard, plan_config, n)
        for name in gpus:
            machine = MACHINES[name]
            step = step_time(
                sizes,
                machine,
                ranks=n,
                stage=2,
                micro_batches=plan_config.micro_batches,
                budget_frames=plan_config.budget_frames,
                context_frames=plan_config.context_frames,
                checkpointing=config.train.gradient_checkpointing,
                efficiency=efficiency,
            )
            stream = simulate_stream(
                costs,
                plan,
                machine,
                bytes_per_frame=shape.bytes_per_frame,
                seconds_per_frame=flops / (machine.flops * efficiency),
                # In a turn every rank trains on one micro-batch, so a step has micro_batches / n turns.
                reduce_s=(step.reduce_s + step.gather_s) * n / plan_config.micro_batches,
                cpus_per_rank=config.scale.cpus_per_rank,
            )
            rows.append(
                {
                    "gpu": name,
                    "ranks": n,
                    "steps_an_epoch": facts.steps,
                    "padding": facts.padding,
                    "fillers": facts.fillers,
                    "waiting_for_each_other": facts.waiting,
                    "mb_per_s_a_node": stream.node_bytes_s / 1e6,
                    "store_requests_per_s": stream.store_requests_s,
                    "first_batch_s": stream.first_s,
                    "data_wait": stream.data_wait,
                    "read_ahead_gb_a_node": stream.ahead_bytes / GB,
                    "plan_s": facts.plan_s,
                }
            )
    return Table(f"An epoch of {len(lengths):,} clips, ZeRO-2", rows)


def _micro_batches(config: Stage2Config, ranks: int) -> int:
    """Return the config's number of micro-batches if `ranks` divides it. Otherwise return `ranks`.

    With one micro-batch per rank, the global batch has another size than the config's.
    """
    micro_batches = config.train.micro_batches
    return micro_batches if micro_batches % ranks == 0 else ranks


def _plan_config(config: Stage2Config, ranks: int) -> PlanConfig:
    return replace(config.plan, micro_batches=_micro_batches(config, ranks))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
