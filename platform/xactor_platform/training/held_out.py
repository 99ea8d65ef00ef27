"""Measure the held-out loss: the same samples and the same draws every time, divided among the ranks."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from xactor_platform.data.index import Index
from xactor_platform.data.plan import MicroBatch, PlanConfig, plan_epoch


class HeldOut:
    """Hold a rank's share of the held-out micro-batches.

    Args:
        index: the index of the held-out samples.
        plan: the rules by which they are cut into micro-batches.
        frames: number of their frames to take; 0 measures nothing.
        rank: this rank.
        ranks: number of ranks.
    """

    def __init__(self, index: Index, plan: PlanConfig, frames: int, *, rank: int, ranks: int):
        self._mine: list[MicroBatch] = []
        shortest = plan.context_frames if plan.whole else 1
        if not frames or not index.samples or index.frames.max() < shortest:
            return
        order, taken = plan_epoch(index.frames, index.shard, plan, 0), 0
        batches = [b for s in range(order.steps) for b in order.step(s) if not b.is_filler]
        for number, micro_batch in enumerate(batches):
            if taken >= frames:
                break
            taken += int(micro_batch.frames.sum())
            if number % ranks == rank:
                self._mine.append(micro_batch)

    @torch.no_grad()
    def evaluate(
        self, loss: Callable[[MicroBatch], tuple[Tensor, int]], device: torch.device
    ) -> dict[str, float]:
        """Return {"held_out_loss": mean over the held-out frames of all ranks}, empty without such frames.

        Args:
            loss: returns a micro-batch's loss, summed over its frames, and the number of these.
            device: the rank's.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # summed loss, frames
        for micro_batch in self._mine:
            summed, frames = loss(micro_batch)
            totals[0] += summed
            totals[1] += frames
        dist.all_reduce(totals)
        summed, frames = totals.tolist()
        return {"held_out_loss": summed / frames} if frames else {}
