"""Configure stage 1, the training of the motion encoder and the renderer, and name its presets."""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

from xactor.render.objective_config import PHASES, ObjectiveConfig, Phase
from xactor_platform.data.index import Index
from xactor_platform.storage.location import child_uri
from xactor_platform.storage.weights import check_weights
from xactor_platform.training.train_config import (
    DataConfig,
    Facts,
    RunConfig,
    ScaleConfig,
    StageConfig,
    TrainConfig,
    at_least,
    positive,
)
from xactor_platform.training.video_corpus import check_start, check_tracks

if TYPE_CHECKING:
    from xactor_platform.training.stage1 import Stage1


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig(DataConfig):
    """Configure the corpus of stage 1: face crops with sound."""

    shards: str = "demo/corpus/videos"
    """Folder or URI (s3://, gs://) of the video shards."""


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """Configure the components of the renderer and the motion encoder."""

    image_size: int = 64
    """Width and height of the pictures in pixels, >= 1. Videos of another size are resized."""
    window_frames: int = 16
    """Number of frames in a window, >= 1. The temporal layers train on windows: consecutive frames of a clip."""
    prediction_type: Literal["v_prediction", "epsilon"] = "v_prediction"
    """Quantity that the UNet predicts: `epsilon` is the noise, `v_prediction` a mix of noise and signal (velocity)."""
    start: str | None = None
    """Folder or URI of a model or an export of stage 1 to train further. Its sizes override all size options except
    image_size, which must be the same. None starts from sd15 or from random weights."""
    sd15: str | None = None
    """Folder or URI of published Stable Diffusion 1.5 weights. Their sizes override the size options of the UNets and
    the VAE. None starts from random weights."""
    animatediff: str | None = None
    """Folder or URI of published AnimateDiff motion modules, from which the temporal layers of sd15's UNet start."""
    vae: str | None = None
    """Folder or URI of a VAE to use instead of sd15's or a random one. It is not trained."""
    channels: tuple[int, ...] = (48, 96)
    """Channels of the UNets' levels, from the highest resolution to the lowest."""
    vae_channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the VAE's levels, from the highest resolution to the lowest."""
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the motion encoder's levels, from the highest resolution to the lowest."""
    encoder_size: int = 64
    """Side in pixels, >= 1, of the pictures that the motion encoder sees. With sd15 the side is always 256."""
    latent_channels: int = 12
    """Channels of the VAE's latents, >= 1."""
    layers_per_block: int = 1
    """Layers in each block of the UNets, >= 1."""
    heads: int = 2
    """Attention heads of the UNets, >= 1."""
    motion_width: int = 96
    """Width of the tokens into which a motion latent is projected for the cross-attention, >= 1."""
    motion_tokens: int = 16
    """Number of tokens per motion latent, >= 1; a square number."""
    guess: bool = True
    """Show the UNet a guess of each frame: the reference picture, moved by the frame's motion latent z. Without a guess
    there is no motion phase, and z is learned through the UNet alone."""
    guess_channels: tuple[int, ...] = (24, 48, 96)
    """Channels of the three levels of the guess network, which makes this guess, each a multiple of 8."""
    guess_scale: int = 1
    """Factor, >= 1, by which portraits and frames of the trained model are larger than image_size. The guess network
    moves a portrait of any size, and the UNet's correction is enlarged to that size."""
    latent_dim: int = 512
    """Width of the motion latents z, >= 1."""

    def __post_init__(self):
        at_least(self, 1, "image_size", "window_frames", "layers_per_block", "heads", "motion_width")
        at_least(self, 1, "motion_tokens", "latent_dim", "latent_channels", "encoder_size", "guess_scale")
        # A config that was read from JSON has lists. Only object.__setattr__ can change a frozen dataclass.
        for name in ("channels", "vae_channels", "encoder_channels", "guess_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.animatediff and not self.sd15:
            raise ValueError("animatediff goes with sd15, which is not given")
        if self.guess_scale > 1 and (self.sd15 or not self.guess):
            raise ValueError(
                f"guess_scale must be 1 without a guess or with sd15's weights, got {self.guess_scale}"
            )
        if self.start and (self.sd15 or self.vae):
            raise ValueError(f"start replaces sd15 and vae: give one or the other, got start {self.start}")

    @property
    def published_folders(self) -> list[str]:
        """Return the folders and URIs that must hold weights, because options name them."""
        if self.start:
            parts = ("motion_encoder", "unet", "reference_unet", "vae")
            return [child_uri(self.start, part) for part in parts]
        sd15 = [child_uri(self.sd15, "unet")] if self.sd15 else []
        vae = [child_uri(self.sd15, "vae")] if self.sd15 and not self.vae else []
        return sd15 + vae + [folder for folder in (self.animatediff, self.vae) if folder]


@dataclass(frozen=True, kw_only=True)
class Stage1TrainConfig(TrainConfig):
    """Configure the optimization of stage 1, which trains in phases: vae, motion, frames, temporal.

    The temporal phase gets the steps that remain after the other phases. `learning_rate` applies to the frames phase.
    Each phase has its own warm-up and schedule. A group of parameters is named after the first phase that trains it.
    """

    budget_frames: int = 64
    """Maximum number of frames in a micro-batch, which consists of complete windows."""
    vae_steps: int = 0
    """Number of steps, >= 0, that train the VAE. Only a VAE with random initial weights is trained."""
    motion_steps: int = 0
    """Number of steps, >= 0, that train the motion encoder and the guess network, without the UNet."""
    frames_steps: int = 300
    """Number of steps, >= 0, that train the reference network, the UNet and the motion encoder on single frames."""
    stills: int = 1
    """Number of single frames, >= 1, that the phases before `temporal` draw from a clip in place of each window."""
    vae_learning_rate: float = 1e-3
    """Highest learning rate of the vae phase, > 0."""
    motion_learning_rate: float = 1e-3
    """Highest learning rate of the motion phase, > 0."""
    encoder_learning_rate: float = 1e-4
    """Highest learning rate of the motion encoder in the frames phase, >= 0. 0 freezes it after the motion phase."""
    temporal_learning_rate: float = 1e-4
    """Highest learning rate of the temporal phase, > 0."""
    ema_decay: float = 0.999
    """Decay, 0 <= d < 1, of the averaged weights (EMA). They are evaluated and exported, and start the next phase."""
    sheet_rows: int = 4
    """Number of held-out clips, >= 0, that each evaluation renders. The run's folder `sheets` shows the results."""
    sheet_steps: int = 10
    """Number of DDIM steps, >= 1, with which each evaluation renders these clips."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "stills", "sheet_steps")
        at_least(self, 0, "vae_steps", "motion_steps", "frames_steps", "sheet_rows", "encoder_learning_rate")
        positive(self, "vae_learning_rate", "motion_learning_rate", "temporal_learning_rate")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be >= 0 and < 1, got {self.ema_decay}")

    def phase(self, step: int) -> Phase:
        """Return the phase of a global step, counted from 0. Raising `steps` does not change earlier steps' phases."""
        for phase in PHASES:
            if step < self.span(phase)[1]:
                return phase
        return "temporal"

    def span(self, phase: Phase) -> tuple[int, int]:
        """Return the first step of a phase, and the step after its last one."""
        # Phase i runs from boundaries[i] up to boundaries[i + 1].
        boundaries = [0, *accumulate((self.vae_steps, self.motion_steps, self.frames_steps)), self.steps]
        number = PHASES.index(phase)
        return boundaries[number], boundaries[number + 1]

    def peaks(self, phase: Phase) -> dict[Phase, float]:
        """Return the highest learning rate of each group of parameters that a phase trains, by the group's name."""
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

    @property
    def trains_encoder(self) -> bool:
        """Return whether a phase trains the motion encoder."""
        return bool(self.motion_steps or (self.frames_steps and self.encoder_learning_rate))

    def stills_of(self, step: int) -> int | None:
        """Return how many single frames a step draws in place of each window. None: it takes the complete window."""
        return None if self.phase(step) == "temporal" else self.stills


@dataclass(frozen=True, kw_only=True)
class Stage1Config(StageConfig):
    """Configure stage 1, the motion encoder and the renderer (Paper 3.1, 4.1)."""

    locations: ClassVar[tuple[str, ...]] = (
        *StageConfig.locations,
        "model.start",
        "model.sd15",
        "model.animatediff",
        "model.vae",
    )
    whole_samples: ClassVar[bool] = True

    data: VideoDataConfig = field(default_factory=VideoDataConfig)
    """Options of the corpus."""
    train: Stage1TrainConfig = field(default_factory=Stage1TrainConfig)
    """Options of the optimization."""
    model: RendererConfig = field(default_factory=RendererConfig)
    """Options of the renderer and the motion encoder."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Options of the loss."""

    def __post_init__(self):
        super().__post_init__()
        if self.train.motion_steps and not self.model.guess:
            raise ValueError(
                f"motion_steps must be 0 without model.guess, which that phase trains, got {self.train.motion_steps}"
            )
        if not (self.model.start or self.train.motion_steps or self.train.encoder_learning_rate):
            raise ValueError("encoder_learning_rate must be > 0 without a motion phase, got 0")
        if self.train.stills > self.model.window_frames:
            raise ValueError(
                f"stills must be <= window_frames ({self.model.window_frames}), got {self.train.stills}"
            )
        has_published_vae = self.model.start or self.model.sd15 or self.model.vae
        if has_published_vae and self.train.vae_steps:
            raise ValueError(
                f"a VAE that is given is not trained: vae_steps must be 0, got {self.train.vae_steps}"
            )
        if not has_published_vae and not self.train.vae_steps:
            raise ValueError("vae_steps must be >= 1 if the VAE starts from random weights, got 0")

    @property
    def sample_frames(self) -> int:
        return self.model.window_frames

    def prepare(self, index: Index, saved: Facts | None) -> Facts:
        """Check the corpus, the folders of weights and the sizes. Return {}, because stage 1 needs no facts."""
        if "mp4" not in index.offset:
            raise ValueError(f"{index.location.uri}: holds latents, not videos")
        if self.model.guess:
            check_tracks(index)
        longest = index.training().frames.max()
        if longest < self.model.window_frames:
            limit = f"{longest}, the frames of the longest clip"
            raise ValueError(f"model.window_frames must be <= {limit}, got {self.model.window_frames}")
        for folder in self.model.published_folders:
            check_weights(folder)
        if self.model.start:
            unet = child_uri(self.model.start, "unet")
            check_start(index, unet, trains_encoder=self.train.trains_encoder)
        if saved is None and not self.model.sd15:
            # Build the model: sizes that do not fit each other raise an error before anything starts. This needs torch.
            from xactor_platform.training.stage1 import build_components

            build_components(self.model, seed=0)
        return {}

    def training_stage(self) -> "type[Stage1]":
        from xactor_platform.training.stage1 import Stage1

        return Stage1


def tiny() -> Stage1Config:
    """Train from random weights within 90 minutes on two CPU cores, on the demo corpus.

    One rank with two threads is faster here than two ranks. The motion encoder is frozen after the motion phase: if it
    is trained further together with a UNet that does not use z yet, it forgets what it learned.
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
            motion_learning_rate=1e-3,
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


def box() -> Stage1Config:
    """Train the small model that comes with the package ("the box"), at 128 px, within hours on two CPU cores.

    Its corpus shows drawn people and still faces that a program moves. The guess network makes most of the picture,
    so the motion phase has most of the steps.
    """
    return Stage1Config(
        run=RunConfig(name="box"),
        scale=ScaleConfig(ranks=1, threads=2),
        model=RendererConfig(
            image_size=128,
            vae_channels=(12, 24, 48),
            encoder_size=96,
            guess_channels=(16, 40, 96),
            guess_scale=2,
        ),
        train=Stage1TrainConfig(
            steps=1370,
            vae_steps=250,
            motion_steps=1100,
            frames_steps=20,
            stills=4,
            vae_learning_rate=2e-3,
            motion_learning_rate=1.2e-3,
            learning_rate=1e-3,
            encoder_learning_rate=0.0,
            temporal_learning_rate=5e-4,
            schedule="cosine",
            micro_batches=1,
            budget_frames=96,
            evaluate_every=300,
            evaluate_frames=512,
            checkpoint_every=150,
            sheet_rows=8,
            sheet_steps=1,
        ),
        objective=ObjectiveConfig(kl_weight=1e-6),
    )


def small() -> Stage1Config:
    """Train SD1.5 and AnimateDiff at 256 px on one GPU."""
    return Stage1Config(
        run=RunConfig(name="small"),
        scale=ScaleConfig.one_gpu(),
        model=RendererConfig(
            image_size=256,
            sd15="weights/stable-diffusion-v1-5",
            animatediff="weights/animatediff",
            guess=False,
        ),
        train=Stage1TrainConfig(
            steps=30_000,
            frames_steps=24_000,
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
    """Train the paper's model: 512 px, 120K steps, batch 8 on 8 GPUs, from SD1.5 and AnimateDiff (Paper 4.1).

    The paper leaves the learning rates and the length of the phases open. Ours: the temporal layers train in the last
    quarter of the steps. The guess, which the paper does not have, is off.
    """
    return Stage1Config(
        run=RunConfig(name="paper"),
        scale=ScaleConfig.gpu_cluster(ranks=8),
        model=RendererConfig(
            image_size=512,
            sd15="weights/stable-diffusion-v1-5",
            animatediff="weights/animatediff",
            vae="weights/sd-vae-ft-mse",
            guess=False,
        ),
        train=Stage1TrainConfig(
            steps=120_000,
            frames_steps=90_000,
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


PRESETS = {"tiny": tiny, "box": box, "small": small, "paper": paper}
