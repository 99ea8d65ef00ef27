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
        plan: the rules by which these samples are divided into micro-batches.
        frames: number of frames to evaluate, rounded up to whole micro-batches; 0 evaluates nothing.
        rank: this rank.
        ranks: number of ranks.
    """

    def __init__(self, index: Index, plan: PlanConfig, frames: int, *, rank: int, ranks: int):
        self._mine: list[MicroBatch] = []
        min_frames = plan.context_frames if plan.whole else 1
        # plan_epoch refuses a corpus without a clip that is long enough.
        if not frames or not index.samples or index.frames.max() < min_frames:
            return
        order = plan_epoch(index.frames, index.shard, plan, 0)
        batches = [batch for step in range(order.steps) for batch in order.step(step) if not batch.is_filler]
        taken = 0
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
        """Return {"held_out_loss": mean over the held-out frames of all ranks}, or {} if there are none.

        Args:
            loss: returns the sum of the losses of a micro-batch's frames, and the number of these frames.
            device: the device of this rank.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # summed loss, frames
        for micro_batch in self._mine:
            summed, frames = loss(micro_batch)
            totals[0] += summed
            totals[1] += frames
        dist.all_reduce(totals)
        total_loss, total_frames = totals.tolist()
        return {"held_out_loss": total_loss / total_frames} if total_frames else {}
