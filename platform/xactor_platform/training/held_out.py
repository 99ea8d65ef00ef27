"""Measure the loss on held-out samples, which are not used for training.

Every evaluation uses the same samples. They are divided among the ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from xactor_platform.data.index import BadSample, Index
from xactor_platform.data.plan import MicroBatch, PlanConfig, plan_epoch


@dataclass(frozen=True)
class Evaluation:
    """Hold the result of an evaluation, the same on all ranks."""

    figures: dict[str, float]
    """`held_out_loss`, the mean over the held-out frames of all ranks. Empty if there are no such frames."""
    bad: list[BadSample]
    """Held-out samples that were found bad when they were read."""
    samples: int
    """Number of held-out samples that were read."""


def gather_bad_samples(mine: list[BadSample]) -> list[BadSample]:
    """Return the bad samples of all ranks. All ranks must call it."""
    gathered: list[list[BadSample]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return [sample for rank in gathered for sample in rank]


class HeldOut:
    """Hold one rank's share of the held-out micro-batches, and evaluate it.

    Args:
        index: the index of the held-out samples.
        plan: the rules by which these samples are divided into micro-batches.
        frames: number of frames that all ranks together evaluate, rounded up to whole micro-batches. 0 evaluates
            nothing.
        rank: number of this rank, from 0.
        ranks: number of ranks.
    """

    def __init__(self, index: Index, plan: PlanConfig, frames: int, *, rank: int, ranks: int):
        self._mine: list[MicroBatch] = []
        self._samples = 0
        min_frames = plan.context_frames if plan.whole else 1
        # If no clip is long enough, nothing is evaluated. plan_epoch would raise ValueError.
        if not frames or not index.samples or index.frames.max() < min_frames:
            return
        order = plan_epoch(index.frames, index.shard, plan, 0)
        # A filler is a micro-batch that only completes a short last step. All of its samples have weight 0.
        batches = [batch for step in range(order.steps) for batch in order.step(step) if not batch.is_filler]
        taken = 0
        for number, micro_batch in enumerate(batches):
            if taken >= frames:
                break
            taken += int(micro_batch.frames.sum())
            self._samples += len(micro_batch.row)
            if number % ranks == rank:
                self._mine.append(micro_batch)

    @torch.no_grad()
    def evaluate(
        self, loss: Callable[[MicroBatch], tuple[Tensor, int, list[BadSample]]], device: torch.device
    ) -> Evaluation:
        """Evaluate the held-out samples of all ranks. All ranks must call it.

        Args:
            loss: returns the sum of the losses of a micro-batch's frames, the number of these frames, and the
                micro-batch's bad samples. To make evaluations comparable, it must draw the same random numbers for a
                sample each time.
            device: the device of this rank.
        """
        # The sum of the losses, the number of frames, and the number of bad samples.
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        mine: list[BadSample] = []
        for micro_batch in self._mine:
            summed, frames, bad = loss(micro_batch)
            totals[0] += summed
            totals[1] += frames
            totals[2] += len(bad)
            mine += bad
        dist.all_reduce(totals)
        total_loss, total_frames, bad_anywhere = totals.tolist()
        figures = {"held_out_loss": total_loss / total_frames} if total_frames else {}
        return Evaluation(figures, gather_bad_samples(mine) if bad_anywhere else [], self._samples)
