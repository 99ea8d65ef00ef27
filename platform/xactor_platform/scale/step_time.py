"""Estimate the time of a global step from the GPUs' peak FLOP/s and the bandwidth between them.

A global step is one optimizer step of the motion model's training. In each turn of the step, every rank (a process with
one GPU) trains on one micro-batch. In this file, `stage` means a stage of DeepSpeed's ZeRO.
"""

from dataclasses import dataclass

from xactor_platform.scale.machine import Machine
from xactor_platform.scale.memory import Sizes, bucket_bytes

# Ours, an assumption: fraction of its peak FLOP/s that a GPU reaches between two reductions of gradients.
EFFICIENCY = 0.4
# Ours: fraction of a link's bandwidth in its data sheet that NCCL's rings reach with large messages.
LINK_EFFICIENCY = 0.8


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Hold the time of one global step, if all micro-batches are equal and no rank waits for data."""

    compute_s: float
    """Seconds of forward and backward passes."""
    reduce_s: float
    """Seconds of reducing gradients."""
    gather_s: float
    """Seconds of gathering parameters."""
    hidden_s: float
    """Seconds of reducing gradients that the backward passes would hide with `train.overlap_comm`."""
    frames: int
    """Number of padded frames of all ranks."""
    mfu: float
    """Model FLOPs utilisation, computed as in metrics.jsonl, the log of a training, but for padded frames."""

    @property
    def total_s(self) -> float:
        """Return the seconds of the step."""
        return self.compute_s + self.reduce_s + self.gather_s

    @property
    def frames_per_s(self) -> float:
        """Return the frames per second of all ranks."""
        return self.frames / self.total_s


def flops_per_frame(sizes: Sizes, context_frames: int, *, checkpointing: bool) -> float:
    """Return the FLOPs per frame of a forward and a backward pass.

    With P parameters, samples of T frames and a backbone of width H, the forward pass takes 2P, and 4TH for the
    attention of each layer. The backward pass takes twice as many. With checkpointing, the backbone's layers and the
    audio attentions run forward once more.
    """
    attention = 4 * context_frames * sizes.hidden * sizes.layers
    recomputed = 2 * sizes.blocks + attention if checkpointing else 0.0
    return 3 * (2 * sizes.parameters + attention) + recomputed


def link_bytes_s(machine: Machine, ranks: int) -> float:
    """Return the bytes per second of one rank's ring in NCCL. The slowest link limits the ring.

    The links are NVLink within a node and, if the ranks are on several nodes, the network between the nodes.
    """
    slowest_link = machine.nvlink_bytes_s
    if ranks > machine.gpus:
        slowest_link = min(slowest_link, machine.network_bytes_s)
    return LINK_EFFICIENCY * slowest_link


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
    """Return the time of one global step.

    Communication does not overlap with computation, because DeepSpeed's option `overlap_comm` is off by default. With
    it, reducing would overlap with the backward passes, except for the last bucket of each turn. Communication is
    counted in units of 2P(N-1)/N bytes, for P parameters in bf16 on N ranks:

    - An all-reduce of the gradients takes 2 units. ZeRO stages 0 and 1 make one all-reduce per step. Stage 2, as
      DeepSpeed implements it, makes one per turn. It reduces bucket by bucket, and each rank keeps its share of each
      bucket.
    - Stages 1 and 2 gather the new parameters once per step, with 1 unit.
    - In every turn, stage 3 gathers the parameters twice and reduce-scatters the gradients once, with 3 units.

    Args:
        sizes: sizes of the model and of its input.
        machine: the GPU and its node.
        ranks: number of ranks. It must divide `micro_batches`.
        stage: stage of ZeRO, 0..3.
        micro_batches: M, the micro-batches of a global step over all ranks.
        budget_frames: padded frames of a micro-batch.
        context_frames: frames of a sample.
        checkpointing: whether the backward pass recomputes the activations of blocks.
        efficiency: fraction of its peak FLOP/s that a GPU reaches between two reductions of gradients.

    Raises:
        ValueError: `ranks` does not divide `micro_batches`.
    """
    if micro_batches % ranks:
        raise ValueError(f"ranks must divide micro_batches ({micro_batches}), got {ranks}")
    turns = micro_batches // ranks
    flops = flops_per_frame(sizes, context_frames, checkpointing=checkpointing)
    compute_s = turns * budget_frames * flops / (machine.flops * efficiency)
    unit_s = 2 * sizes.parameters * (ranks - 1) / ranks / link_bytes_s(machine, ranks)
    # Units per step by ZeRO stage.
    reduces = {0: 2, 1: 2, 2: 2 * turns, 3: turns}[stage]
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * turns}[stage]
    frames = micro_batches * budget_frames
    forward = flops_per_frame(sizes, context_frames, checkpointing=False) / 3
    # A bucket of gradients can be reduced while those of earlier layers are computed.
    in_time = 1 - min(bucket_bytes(sizes.parameters) / (4 * sizes.parameters), 1)
    hidden_s = in_time * min(reduces * unit_s, compute_s * (1 - forward / flops))
    total_s = compute_s + (reduces + gathers) * unit_s
    # The utilisation counts neither the FLOPs of attention nor those of recomputation, as in metrics.jsonl.
    useful = 3 * 2 * sizes.parameters * frames
    return StepTime(
        compute_s=compute_s,
        reduce_s=reduces * unit_s,
        gather_s=gathers * unit_s,
        hidden_s=hidden_s,
        frames=frames,
        mfu=useful / (total_s * ranks * machine.flops),
    )
