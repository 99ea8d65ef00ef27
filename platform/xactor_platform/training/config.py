"""What a training run is made of: frozen dataclasses, and presets that fill them."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from xactor.motion import ForcingConfig
from xactor.motion.masks import Attention
from xactor_platform.plan import PlanConfig


def _at_least(owner: object, low: float, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < low:
            raise ValueError(f"{name} must be >= {low:g}, got {getattr(owner, name):g}")


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().absolute())


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """
    storage: URI under which runs are kept (local, s3://, gs://).
    name: this run's folder there.
    resume: insist on going on; the saved config is the default of every other option.
    """

    storage: str = "runs"
    name: str = "tiny"
    resume: bool = False

    def __post_init__(self):
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"run name must be a plain folder name, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """
    ranks: worker processes; must divide train.micro_batches.
    cpus_per_rank: CPUs reserved for each. Some must be left for Ray Data to read with.
    threads: torch threads a rank on CPU. Part of the config: resume is bit-equal only with the same number.
    device: `gpu` reserves one for each rank; `auto` where the cluster has any.
    start_timeout_s: how long to wait for a cluster to grow to the resources that the ranks need.
    collective_timeout_s: how long a rank waits for the others before it gives up.
    max_failures: how often Ray restarts the ranks from the last checkpoint.
    """

    ranks: int = 2
    cpus_per_rank: float = 0.5
    threads: int = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    start_timeout_s: int = 30
    collective_timeout_s: int = 600
    max_failures: int = 2

    def __post_init__(self):
        _at_least(self, 1, "ranks", "threads", "start_timeout_s", "collective_timeout_s")
        _at_least(self, 0, "max_failures", "cpus_per_rank")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """
    shards: URI of the folder of shards.
    max_bad_fraction: how much of the corpus may be unusable before the run stops.
    audio_encoder: folder of the encoder that made the features, copied into the export; by default
        `audio_encoder` beside the shards' folder, where there is one.
    """

    shards: str = "demo/corpus/shards"
    max_bad_fraction: float = 0.0
    audio_encoder: str | None = None

    def __post_init__(self):
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be within 0..1, got {self.max_bad_fraction}")


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
        _at_least(self, 1, "hidden", "layers", "heads", "kv_heads", "mlp", "audio_width", "chunk_frames")
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
class TrainConfig:
    """
    steps: global steps, each of micro_batches micro-batches of at most budget_frames padded frames.
    warmup_steps: of a linear warm-up. schedule: constant afterwards, or a cosine down to a tenth.
    evaluate_every, checkpoint_every: in steps; 0 is only at the end.
    evaluate_frames: how many held-out frames an evaluation takes.
    keep_checkpoints: how many of the newest to keep.
    precision: `auto` is bf16 on a GPU and fp32 on a CPU.
    gradient_checkpointing: recompute activations in the backward pass.
    overlap_comm: DeepSpeed's overlap of reduction and backward; it has had races, so off by default.
    log_samples: write every sample of every step to samples.jsonl.
    """

    steps: int = 400
    seed: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 20
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = 1.0
    micro_batches: int = 16
    budget_frames: int = 512
    window_shards: int = 16
    evaluate_every: int = 100
    evaluate_frames: int = 4096
    checkpoint_every: int = 200
    keep_checkpoints: int = 3
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    overlap_comm: bool = False
    log_samples: bool = False

    def __post_init__(self):
        _at_least(self, 1, "steps", "micro_batches", "budget_frames", "window_shards", "keep_checkpoints")
        _at_least(self, 0, "seed", "warmup_steps", "evaluate_every", "evaluate_frames", "checkpoint_every")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """Stage 2, the motion model (Paper 3.2, 3.3, 4.1)."""

    run: RunConfig = field(default_factory=RunConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: MotionConfig = field(default_factory=MotionConfig)
    forcing: ForcingConfig = field(default_factory=ForcingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        self.plan.check_ranks(self.scale.ranks)

    @classmethod
    def from_dict(cls, saved: dict[str, dict[str, Any]]) -> "Stage2Config":
        """The config that `dataclasses.asdict` made a dict of. ValueError names an option it does not know."""
        parts = {part.name: cast(type, part.default_factory) for part in fields(cls)}
        try:
            return cls(**{name: parts[name](**options) for name, options in saved.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the saved config is of another version: {error}") from error

    def located(self) -> "Stage2Config":
        """The same with local paths made absolute: a worker's current folder is another than the driver's."""
        return replace(
            self,
            run=replace(self.run, storage=_absolute(self.run.storage)),
            data=replace(
                self.data,
                shards=_absolute(self.data.shards),
                audio_encoder=self.data.audio_encoder and _absolute(self.data.audio_encoder),
            ),
            model=replace(self.model, backbone=self.model.backbone and _absolute(self.model.backbone)),
        )

    @property
    def plan(self) -> PlanConfig:
        return PlanConfig(
            seed=self.train.seed,
            micro_batches=self.train.micro_batches,
            budget_frames=self.train.budget_frames,
            context_frames=self.model.context_frames,
            window_shards=self.train.window_shards,
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
