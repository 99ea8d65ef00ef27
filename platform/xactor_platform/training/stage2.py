"""Stage 2, the motion model: how it is built, fed and exported."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xactor.motion import (
    DiffusionForcing,
    ForcingBatch,
    MotionScheduler,
    MotionTransformer,
    MotionTransformerConfig,
    draw,
)
from xactor_platform.data.batch import LatentBatch, LatentReader, read_batch
from xactor_platform.data.index import CorpusShape, Index
from xactor_platform.data.plan import MicroBatch, PlanConfig, Step, plan_epoch
from xactor_platform.training.engine import learning_rate
from xactor_platform.training.held_out import HeldOut
from xactor_platform.training.stage import Facts, Stage
from xactor_platform.training.stage2_config import LatentDataConfig, MotionConfig, Stage2Config

MOMENT_FRAMES = 200_000
SMALLEST_STD = 1e-3  # a latent dimension that the corpus never moves must not be blown up


class Stage2(Stage):
    """Trains the motion transformer on latents and audio features.

    Its facts: the latents' moments, and the folder of the audio encoder.
    """

    objective: DiffusionForcing

    @classmethod
    def prepare(cls, config: Stage2Config, index: Index, saved: Facts | None) -> Facts:
        shape, backbone = index.frame_shape, config.model.backbone
        build_model(replace(config.model, backbone=None, layers=1), shape, seed=0)  # does it fit the corpus?
        if backbone and not (Path(backbone) / "config.json").exists():
            raise FileNotFoundError(f"no backbone in {backbone}: config.json is missing")
        moments = saved["moments"] if saved else latent_moments(index.training(), config.plan)
        return {"moments": moments, "audio_encoder": find_audio_encoder(config.data)}

    def __init__(
        self, config: Stage2Config, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ):
        self._config, self._audio_encoder, self._device = config, facts["audio_encoder"], device
        self._index = index.held_out()
        self.objective = build_objective(config, index.frame_shape, facts["moments"])
        self.reader = LatentReader(index.training())
        self.flops_per_frame = 6 * sum(p.numel() for p in self.objective.parameters())
        self._held_out = HeldOut(
            self._index, config.plan, config.train.evaluate_frames, rank=rank, ranks=ranks
        )

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [[p for p in self.objective.parameters() if p.requires_grad]]

    def rates(self, step: int) -> list[float]:
        return [learning_rate(step, self._config.train)]

    def target_frames(self, planned: Step, step: int) -> int:
        return planned.frames

    def loss(
        self, forward: Callable[..., Tensor], batch: LatentBatch, step: int, key: tuple[int | str, ...]
    ) -> Tensor:
        model = self.objective.model.config
        draws = [
            draw(
                (*key, clip, int(start)),
                int(frames),
                model.latent_dim,
                model.chunk_frames,
                self._config.forcing,
            )
            for clip, start, frames in zip(batch.keys, batch.starts, batch.frames, strict=True)
        ]
        z, audio, frames, weight = (
            torch.from_numpy(a) for a in (batch.motion, batch.audio, batch.frames, batch.weight)
        )
        return forward(ForcingBatch.build(z, audio, frames, weight, draws).to(self._device))

    def evaluate(self, step: int) -> dict[str, float]:
        def loss(micro_batch: MicroBatch) -> tuple[Tensor, int]:
            batch = read_batch(self._index, micro_batch)
            return self.loss(self.objective, batch, step, (0, "held-out")), int(batch.mask.sum())

        self.objective.eval()
        figures = self._held_out.evaluate(loss, self._device)
        self.objective.train()
        return figures

    def export(self, folder: Path) -> None:
        """motion/, motion_scheduler/ and, where known, audio_encoder/."""
        self.objective.model.save_pretrained(folder / "motion")
        MotionScheduler().save_pretrained(folder / "motion_scheduler")
        if self._audio_encoder:
            shutil.copytree(self._audio_encoder, folder / "audio_encoder")


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


def find_audio_encoder(config: LatentDataConfig) -> str | None:
    """The folder to copy into the export: as configured, or `audio_encoder` beside a local folder of shards."""
    if config.audio_encoder is not None:
        if not Path(config.audio_encoder).is_dir():
            raise FileNotFoundError(f"no audio encoder in {config.audio_encoder}")
        return str(Path(config.audio_encoder).absolute())
    beside = Path(config.shards).absolute().parent / "audio_encoder"
    return str(beside) if "://" not in config.shards and beside.is_dir() else None
