"""Stage 2's side of training: how the motion model is built, fed and exported."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from xactor.motion import (
    DiffusionForcing,
    ForcingBatch,
    MotionScheduler,
    MotionTransformer,
    MotionTransformerConfig,
    draw,
)
from xactor_platform.batch import Batch, read_batch
from xactor_platform.index import CorpusShape, Index
from xactor_platform.plan import PlanConfig, plan_epoch
from xactor_platform.training.config import MotionConfig, Stage2Config

MOMENT_FRAMES = 200_000
SMALLEST_STD = 1e-3  # a latent dimension that the corpus never moves must not be blown up


def build_model(config: MotionConfig, shape: CorpusShape, *, seed: int) -> MotionTransformer:
    """The motion transformer, the same on every rank. Backbone from published weights, or random for tiny."""
    torch.manual_seed(seed)
    sizes = {
        "latent_dim": shape.latent_width,
        "audio_layers": shape.audio_layers,
        "audio_dim": shape.audio_width,
        "audio_width": config.audio_width,
        "chunk_frames": config.chunk_frames,
        "context_frames": config.context_frames,
        "attention": config.attention,
    }
    if config.backbone:
        model = MotionTransformer.from_backbone(config.backbone, **sizes)
    else:
        qwen = {
            "hidden_size": config.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "intermediate_size": config.mlp,
        }
        model = MotionTransformer(MotionTransformerConfig(backbone=qwen, **sizes))
    model.backbone.set_attn_implementation(config.attn_implementation)
    return model


def build_objective(
    config: Stage2Config, shape: CorpusShape, moments: tuple[list[float], list[float]]
) -> DiffusionForcing:
    """Model and loss in one module, for the engine. `moments` are the latents' mean and deviation, [D] each."""
    model = build_model(config.model, shape, seed=config.train.seed)
    model.set_latent_statistics(*(torch.tensor(m) for m in moments))
    if config.train.gradient_checkpointing:
        model.enable_checkpointing()
    return DiffusionForcing(model, config.forcing)


def forcing_batch(
    batch: Batch, *, seed: int, epoch: int | str, model: MotionTransformer, config: Stage2Config
) -> ForcingBatch:
    """A planned micro-batch with each sample's own draw, keyed (seed, epoch, key, start)."""
    draws = [
        draw(
            (seed, epoch, key, int(start)),
            int(frames),
            model.config.latent_dim,
            model.config.chunk_frames,
            config.forcing,
        )
        for key, start, frames in zip(batch.keys, batch.starts, batch.frames, strict=True)
    ]
    z, audio, frames, weight = (
        torch.from_numpy(a) for a in (batch.motion, batch.audio, batch.frames, batch.weight)
    )
    return ForcingBatch.build(z, audio, frames, weight, draws)


def latent_moments(index: Index, plan: PlanConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the latents, [D] each, over a seeded part of the corpus."""
    count = 0
    total = square = np.zeros(index.frame_shape.latent_width)
    order = plan_epoch(index.frames, index.shard, plan, 0)
    for step in range(order.steps):
        for micro_batch in order.step(step):
            if micro_batch.is_filler:
                continue
            batch = read_batch(index, micro_batch)
            z = batch.motion[batch.mask].astype(np.float64)  # [frames, D]
            count += len(z)
            total = total + z.sum(0)
            square = square + (z**2).sum(0)
        if count >= MOMENT_FRAMES:
            break
    if not count:
        raise ValueError(f"{index.location.uri}: no readable sample to take the latents' statistics from")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, SMALLEST_STD**2))
    return mean.tolist(), std.tolist()


class HeldOut:
    """The held-out loss: the same clips and the same draws every time, shared out over the ranks."""

    def __init__(self, index: Index, config: Stage2Config, *, rank: int, ranks: int):
        self._config, self._index = config, index.held_out()
        self._mine, frames = [], 0
        if not self._index.samples or not config.train.evaluate_frames:
            return
        plan = plan_epoch(self._index.frames, self._index.shard, config.plan, 0)
        batches = [b for s in range(plan.steps) for b in plan.step(s) if not b.is_filler]
        for number, micro_batch in enumerate(batches):
            if frames >= config.train.evaluate_frames:
                break
            frames += int(micro_batch.frames.sum())
            if number % ranks == rank:
                self._mine.append(micro_batch)

    @torch.no_grad()
    def evaluate(self, objective: DiffusionForcing, device: torch.device) -> dict[str, float]:
        """{"held_out_loss": mean over the held-out frames of all ranks}; empty where none are held out."""
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # summed loss, frames
        objective.eval()
        for micro_batch in self._mine:
            batch = read_batch(self._index, micro_batch)
            ready = forcing_batch(batch, seed=0, epoch="held-out", model=objective.model, config=self._config)
            totals[0] += objective(ready.to(device))
            totals[1] += int(batch.mask.sum())
        objective.train()
        dist.all_reduce(totals)
        loss, frames = totals.tolist()
        return {"held_out_loss": loss / frames} if frames else {}


def export(objective: DiffusionForcing, folder: Path, audio_encoder: str | None) -> None:
    """The trained model as a pipeline's parts: motion/, motion_scheduler/ and, where known, audio_encoder/."""
    objective.model.save_pretrained(folder / "motion")
    MotionScheduler().save_pretrained(folder / "motion_scheduler")
    if audio_encoder:
        shutil.copytree(audio_encoder, folder / "audio_encoder")
