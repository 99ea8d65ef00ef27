"""How long a global step of stage 2 takes: arithmetic over the GPUs' peak, bytes over the links between them."""

from dataclasses import dataclass

from xactor_platform.scale.machine import Machine
from xactor_platform.scale.memory import Sizes

# Ours, an assumption: what a GPU reaches of its peak between two reductions.
EFFICIENCY = 0.4
LINK_EFFICIENCY = 0.8  # Ours: of a link's data sheet that NCCL's rings reach on large messages


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one global step, if the data is there and all micro-batches are alike."""

    compute_s: float
    reduce_s: float
    gather_s: float
    frames: int
    mfu: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.reduce_s + self.gather_s

    @property
    def frames_per_s(self) -> float:
        """Of all ranks."""
        return self.frames / self.total_s


def flops_per_frame(sizes: Sizes, context_frames: int, *, checkpointing: bool) -> float:
    """Forward 2P and attention 4TH a layer, backward twice that; the backbone's layers once more with checkpointing."""
    attention = 4 * context_frames * sizes.hidden * sizes.layers
    again = 2 * sizes.backbone + attention if checkpointing else 0.0
    return 3 * (2 * sizes.parameters + attention) + again


def link_bytes_s(machine: Machine, ranks: int) -> float:
    """What one rank's ring carries: NVLink inside a node; over several, their GPUs share the node's network."""
    inside = machine.nvlink_bytes_s
    return LINK_EFFICIENCY * (inside if ranks <= machine.gpus else min(inside, machine.network_bytes_s))


def step_time(
    sizes: Sizes,
    machine: Machine,
    *,
    ranks: int,
    stage: int,
    micro_batches: int,
    budget_frames: int,
    context_frames: int,
    checkpointing: bool,
    efficiency: float = EFFICIENCY,
) -> StepTime:
    """Nothing overlaps, as `overlap_comm` is off.

    In units of the bf16 parameters' 2P(N-1)/N bytes: an all-reduce of gradients is 2, and DeepSpeed's ZeRO-2 makes one
    after every micro-batch (by buckets, of which each rank keeps its part), stages 0 and 1 one a step. Stages 1 and 2
    gather the new parameters once a step, 1; stage 3 gathers twice a micro-batch and scatters gradients once, 3.
    """
    if micro_batches % ranks:
        raise ValueError(f"ranks must divide micro_batches ({micro_batches}), got {ranks}")
    turns = micro_batches // ranks
    flops = flops_per_frame(sizes, context_frames, checkpointing=checkpointing)
    compute_s = turns * budget_frames * flops / (machine.flops * efficiency)
    unit_s = 2 * sizes.parameters * (ranks - 1) / ranks / link_bytes_s(machine, ranks)
    reduces = {0: 2, 1: 2, 2: 2 * turns, 3: turns}[stage]
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * turns}[stage]
    frames = micro_batches * budget_frames
    total_s = compute_s + (reduces + gathers) * unit_s
    useful = 3 * 2 * sizes.parameters * frames  # as metrics.jsonl counts it
    return StepTime(
        compute_s=compute_s,
        reduce_s=reduces * unit_s,
        gather_s=gathers * unit_s,
        frames=frames,
        mfu=useful / (total_s * ranks * machine.flops),
    )
