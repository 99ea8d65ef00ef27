"""Stage 2's configuration and its presets."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from xactor.motion.forcing_config import Attention, ForcingConfig
from xactor_platform.data.plan import PlanConfig
from xactor_platform.training.config import (
    DataConfig,
    RunConfig,
    ScaleConfig,
    StageConfig,
    TrainConfig,
    absolute,
    at_least,
)


@dataclass(frozen=True, kw_only=True)
class LatentDataConfig(DataConfig):
    """
    shards: URI of the folder of shards.
    max_bad_fraction: how much of the corpus may be unusable before the run stops.
    audio_encoder: folder of the encoder that made the features, copied into the export; by default
        `audio_encoder` beside the shards' folder, where there is one.
    """

    shards: str = "demo/corpus/shards"
    audio_encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """The motion transformer's sizes. D, L and F come from the shards.

    backbone: folder of published Qwen2.5 weights; None for random ones of the sizes below, which `backbone` overrides.
    """

    backbone: str | None = None
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 336
    audio_width: int = 128
    chunk_frames: int = 16
    context_frames: int = 128
    attention: Attention = "chunk"
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"

    def __post_init__(self):
        at_least(self, 1, "hidden", "layers", "heads", "kv_heads", "mlp", "audio_width", "chunk_frames")
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads must divide hidden and kv_heads divide heads, "
                f"got hidden {self.hidden}, heads {self.heads}, kv_heads {self.kv_heads}"
            )
        if self.context_frames < 2 * self.chunk_frames or self.context_frames % self.chunk_frames:
            raise ValueError(
                f"context_frames must be a multiple of chunk_frames and at least two, "
                f"got {self.context_frames} with chunk_frames {self.chunk_frames}"
            )


@dataclass(frozen=True, kw_only=True)
class Stage2Config(StageConfig):
    """Stage 2, the motion model (Paper 3.2, 3.3, 4.1)."""

    stage = 2
    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    model: MotionConfig = field(default_factory=MotionConfig)
    forcing: ForcingConfig = field(default_factory=ForcingConfig)

    def located(self) -> Self:
        config = super().located()
        encoder, backbone = self.data.audio_encoder, self.model.backbone
        return replace(
            config,
            data=replace(config.data, audio_encoder=encoder and absolute(encoder)),
            model=replace(config.model, backbone=backbone and absolute(backbone)),
        )

    @property
    def plan(self) -> PlanConfig:
        return PlanConfig(
            seed=self.train.seed,
            micro_batches=self.train.micro_batches,
            budget_frames=self.train.budget_frames,
            context_frames=self.model.context_frames,
            shuffle_shards=self.train.shuffle_shards,
        )


def tiny() -> Stage2Config:
    """Minutes on two CPU cores, on the demo corpus."""
    return Stage2Config(
        train=TrainConfig(
            steps=300,
            learning_rate=1e-3,
            schedule="cosine",
            micro_batches=4,
            budget_frames=512,
            evaluate_every=100,
        )
    )


def small() -> Stage2Config:
    """A Qwen2.5-0.5B backbone on one GPU."""
    return Stage2Config(
        run=RunConfig(name="small"),
        scale=ScaleConfig(ranks=1, cpus_per_rank=4, threads=4, device="gpu", start_timeout_s=600),
        model=MotionConfig(
            backbone="weights/Qwen2.5-0.5B",
            hidden=896,
            layers=24,
            heads=14,
            kv_heads=2,
            mlp=4864,
            audio_width=768,
            chunk_frames=64,
            context_frames=512,
        ),
        train=TrainConfig(
            steps=30_000,
            warmup_steps=500,
            budget_frames=8192,
            micro_batches=2,
            evaluate_every=500,
            evaluate_frames=32_768,
            checkpoint_every=1000,
        ),
    )


def paper_7b() -> Stage2Config:
    """The paper's: Qwen2.5-7B, chunk 64, context 512, lr 1e-4, 66K steps on 16 A100 (Paper 4.1).

    The paper's batch is "runtime-dynamic"; ours is 16 micro-batches of at most 8,192 padded frames.
    """
    return Stage2Config(
        run=RunConfig(name="paper-7b"),
        scale=ScaleConfig(
            ranks=16,
            cpus_per_rank=8,
            threads=8,
            device="gpu",
            start_timeout_s=1800,
            collective_timeout_s=1800,
            max_failures=20,
        ),
        model=MotionConfig(
            backbone="weights/Qwen2.5-7B",
            hidden=3584,
            layers=28,
            heads=28,
            kv_heads=4,
            mlp=18_944,
            audio_width=1024,
            chunk_frames=64,
            context_frames=512,
        ),
        train=TrainConfig(
            steps=66_000,
            warmup_steps=1000,
            budget_frames=8192,
            micro_batches=16,
            evaluate_every=1000,
            evaluate_frames=131_072,
            checkpoint_every=500,
            gradient_checkpointing=True,
        ),
    )


PRESETS = {"tiny": tiny, "small": small, "paper-7b": paper_7b}
