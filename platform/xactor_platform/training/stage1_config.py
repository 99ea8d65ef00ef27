"""Stage 1's configuration and its presets."""

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, Self

from xactor.render.objective_config import PHASES, ObjectiveConfig, Phase
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
class VideoDataConfig(DataConfig):
    """
    shards: URI of the folder of video shards.
    max_bad_fraction: how much of the corpus may be unusable before the run stops.
    """

    shards: str = "demo/corpus/videos"


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """
    image_size: side of the pictures in pixels; videos of another are resized.
    window_frames: of the windows that the temporal layers train on.
    sd15: folder of published Stable Diffusion 1.5 weights; None for random ones of the sizes below, which it overrides.
    animatediff: folder of published motion modules, for sd15's UNet.
    vae: folder of a VAE to use as it is, in place of sd15's or of a random one.
    channels, vae_channels, encoder_channels: of the stages of the UNets, the VAE and the motion encoder.
    latent_channels: of the VAE. motion_width, motion_tokens: what a motion latent becomes for the cross-attention.
    """

    image_size: int = 64
    window_frames: int = 16
    prediction_type: Literal["v_prediction", "epsilon"] = "v_prediction"
    sd15: str | None = None
    animatediff: str | None = None
    vae: str | None = None
    channels: tuple[int, ...] = (48, 96)
    vae_channels: tuple[int, ...] = (16, 32, 64)
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 12
    layers_per_block: int = 1
    heads: int = 2
    motion_width: int = 96
    motion_tokens: int = 16
    latent_dim: int = 512

    def __post_init__(self):
        at_least(self, 1, "image_size", "window_frames", "layers_per_block", "heads", "motion_width")
        at_least(self, 1, "motion_tokens", "latent_dim", "latent_channels")
        for name in ("channels", "vae_channels", "encoder_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        if self.animatediff and not self.sd15:
            raise ValueError("animatediff goes with sd15, which is not given")


@dataclass(frozen=True, kw_only=True)
class Stage1TrainConfig(TrainConfig):
    """
    steps: global steps, each of micro_batches micro-batches of at most budget_frames frames in windows.
    vae_steps: the first of them train the autoencoder, where it starts from nothing.
    motion_steps: the next train the motion encoder alone, on the changes of thumbnails that follow from it.
    frames_steps: the next train the reference network, the UNet and the motion encoder on single frames. What is left
        of the steps trains the temporal layers on windows.
    stills: how many single frames a step before the temporal ones takes of each window's clip.
    learning_rate: of the frames' steps. vae_learning_rate, motion_learning_rate, temporal_learning_rate: of the others.
    encoder_learning_rate: of the motion encoder in the frames' steps; 0 leaves it as the motion steps made it.
    warmup_steps: of each phase's linear warm-up. schedule: constant afterwards, or a cosine down to a tenth.
    ema_decay: of the averaged weights that are evaluated, exported, and frozen where their steps end.
    evaluate_every, checkpoint_every: in steps; 0 is only at the end.
    evaluate_frames: how many held-out frames an evaluation takes, in windows.
    sheet_rows: how many held-out clips an evaluation renders into a picture. sheet_steps: of DDIM, for that.
    keep_checkpoints: how many of the newest to keep.
    precision: `auto` is bf16 on a GPU and fp32 on a CPU.
    gradient_checkpointing: recompute activations in the backward pass.
    overlap_comm: DeepSpeed's overlap of reduction and backward; it has had races, so off by default.
    log_samples: write every sample of every step to samples.jsonl.
    tensorboard: write metrics to the run's folder `tensorboard` too.
    """

    budget_frames: int = 64
    vae_steps: int = 0
    motion_steps: int = 0
    frames_steps: int = 300
    stills: int = 1
    vae_learning_rate: float = 1e-3
    motion_learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4
    temporal_learning_rate: float = 1e-4
    ema_decay: float = 0.999
    sheet_rows: int = 4
    sheet_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "stills", "sheet_steps")
        at_least(self, 0, "vae_steps", "motion_steps", "frames_steps", "sheet_rows", "encoder_learning_rate")
        for name in ("vae_learning_rate", "motion_learning_rate", "temporal_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be within 0..1, got {self.ema_decay}")

    def phase(self, step: int) -> Phase:
        """What a global step trains, the first being 0. More `steps` change nothing about those before."""
        for phase in PHASES:
            if step < self.span(phase)[1]:
                return phase
        return "temporal"

    def span(self, phase: Phase) -> tuple[int, int]:
        """The steps of a phase: the first, and the one after the last."""
        ends = [*accumulate((self.vae_steps, self.motion_steps, self.frames_steps)), self.steps]
        at = PHASES.index(phase)
        return ends[at - 1] if at else 0, ends[at]

    def peaks(self, phase: Phase) -> dict[Phase, float]:
        """The groups of parameters that a phase trains, with their highest learning rates."""
        rates: dict[Phase, float] = {
            "vae": self.vae_learning_rate,
            "motion": self.motion_learning_rate,
            "frames": self.learning_rate,
            "temporal": self.temporal_learning_rate,
        }
        trained: dict[Phase, float] = {phase: rates[phase]}
        if phase == "frames" and self.encoder_learning_rate:
            trained["motion"] = self.encoder_learning_rate
        return trained

    def stills_of(self, step: int) -> int | None:
        """How many single frames of each window a step takes; None for the window as one sequence."""
        return None if self.phase(step) == "temporal" else self.stills


@dataclass(frozen=True, kw_only=True)
class Stage1Config(StageConfig):
    """Stage 1, the motion encoder and the renderer (Paper 3.1, 4.1)."""

    stage = 1
    data: VideoDataConfig = field(default_factory=VideoDataConfig)
    train: Stage1TrainConfig = field(default_factory=Stage1TrainConfig)
    model: RendererConfig = field(default_factory=RendererConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.train.stills > self.model.window_frames:
            raise ValueError(
                f"stills must be <= window_frames ({self.model.window_frames}), got {self.train.stills}"
            )
        given = self.model.sd15 or self.model.vae
        if given and self.train.vae_steps:
            raise ValueError(
                f"a VAE that is given is not trained: vae_steps must be 0, got {self.train.vae_steps}"
            )
        if not given and not self.train.vae_steps:
            raise ValueError("vae_steps must be >= 1 where the VAE starts from nothing, got 0")

    def located(self) -> Self:
        config = super().located()
        folders = {name: getattr(self.model, name) for name in ("sd15", "animatediff", "vae")}
        return replace(
            config, model=replace(config.model, **{n: f and absolute(f) for n, f in folders.items()})
        )

    @property
    def plan(self) -> PlanConfig:
        return PlanConfig(
            seed=self.train.seed,
            micro_batches=self.train.micro_batches,
            budget_frames=self.train.budget_frames,
            context_frames=self.model.window_frames,
            shuffle_shards=self.train.shuffle_shards,
            whole=True,
        )


def tiny() -> Stage1Config:
    """Within 90 minutes on two CPU cores, on the demo corpus, from nothing.

    One rank, whose two threads are faster here than two ranks. The motion encoder stays as the motion steps made it:
    trained on beside a UNet that does not hear z yet, it forgets.
    """
    return Stage1Config(
        scale=ScaleConfig(ranks=1, threads=2),
        model=RendererConfig(encoder_channels=(24, 48, 96, 192)),
        train=Stage1TrainConfig(
            steps=4950,
            vae_steps=300,
            motion_steps=4000,
            frames_steps=600,
            stills=4,
            vae_learning_rate=2e-3,
            motion_learning_rate=2e-3,
            learning_rate=1.5e-3,
            encoder_learning_rate=0.0,
            temporal_learning_rate=5e-4,
            schedule="cosine",
            micro_batches=1,
            budget_frames=128,
            evaluate_every=500,
            evaluate_frames=512,
            checkpoint_every=250,
            sheet_steps=1,
        ),
        objective=ObjectiveConfig(kl_weight=1e-6),
    )


def small() -> Stage1Config:
    """SD1.5 and AnimateDiff at 256 px on one GPU."""
    return Stage1Config(
        run=RunConfig(name="small"),
        scale=ScaleConfig(ranks=1, cpus_per_rank=4, threads=4, device="gpu", start_timeout_s=600),
        model=RendererConfig(
            image_size=256, sd15="weights/stable-diffusion-v1-5", animatediff="weights/animatediff"
        ),
        train=Stage1TrainConfig(
            steps=30_000,
            motion_steps=1000,
            frames_steps=23_000,
            stills=8,
            learning_rate=3e-5,
            encoder_learning_rate=3e-5,
            temporal_learning_rate=3e-5,
            warmup_steps=500,
            micro_batches=4,
            budget_frames=32,
            ema_decay=0.9995,
            evaluate_every=500,
            evaluate_frames=1024,
            checkpoint_every=1000,
            sheet_steps=25,
        ),
    )


def paper() -> Stage1Config:
    """The paper's: 512 px, 120K steps, batch 8 on 8 GPUs, from SD1.5 and AnimateDiff (Paper 4.1).

    The rest is left open. Ours: the first steps train the motion encoder by itself and the last quarter the temporal
    layers; the learning rates.
    """
    return Stage1Config(
        run=RunConfig(name="paper"),
        scale=ScaleConfig(
            ranks=8,
            cpus_per_rank=8,
            threads=8,
            device="gpu",
            start_timeout_s=1800,
            collective_timeout_s=1800,
            max_failures=20,
        ),
        model=RendererConfig(
            image_size=512,
            sd15="weights/stable-diffusion-v1-5",
            animatediff="weights/animatediff",
            vae="weights/sd-vae-ft-mse",
        ),
        train=Stage1TrainConfig(
            steps=120_000,
            motion_steps=2000,
            frames_steps=88_000,
            learning_rate=1e-5,
            encoder_learning_rate=1e-5,
            temporal_learning_rate=1e-5,
            warmup_steps=1000,
            micro_batches=8,
            budget_frames=16,
            ema_decay=0.9999,
            evaluate_every=2000,
            evaluate_frames=1024,
            checkpoint_every=1000,
            gradient_checkpointing=True,
            sheet_steps=25,
        ),
    )


PRESETS = {"tiny": tiny, "small": small, "paper": paper}
