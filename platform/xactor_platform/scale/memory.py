"""What a rank of stage 2 holds in its GPU's memory.

H is the backbone's width, I its MLP's, h its heads, A the audio embedding's width, D the latent's, L x F the audio
features of a frame, T the frames of a sample. P counts parameters, N ranks. All sizes are bytes, in bf16 where nothing
else is said.
"""

from dataclasses import dataclass, replace

import torch

from xactor_platform.data.index import CorpusShape
from xactor_platform.training.engine import deepspeed_config
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2_config import MotionConfig
from xactor_platform.training.train_config import TrainConfig

STAGES = (0, 1, 2, 3)
# Ours: CUDA's context, NCCL's and cuBLAS' buffers, and what the allocator cannot use again.
OVERHEAD_BYTES = 4e9


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a model and what goes into it; names as above."""

    parameters: int
    backbone: int  # of them, in the layers that checkpointing recomputes
    hidden: int
    mlp: int
    layers: int
    heads: int
    audio_width: int
    latent_width: int
    features: int  # L x F


def sizes_of(config: MotionConfig, shape: CorpusShape) -> Sizes:
    """Counts a model that is built without memory for its weights."""
    with torch.device("meta"):
        model = build_model(replace(config, backbone=None), shape, seed=0)
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        hidden=config.hidden,
        mlp=config.mlp,
        layers=config.layers,
        heads=config.heads,
        audio_width=config.audio_width,
        latent_width=shape.latent_width,
        features=shape.audio_layers * shape.audio_width,
        backbone=sum(p.numel() for p in model.backbone.layers.parameters()),
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one rank, at its fullest: in the backward pass."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buckets: float
    overhead: float = OVERHEAD_BYTES

    @property
    def states(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.activations + self.buckets + self.overhead


def memory(
    sizes: Sizes, *, ranks: int, stage: int, budget_frames: int, context_frames: int, checkpointing: bool
) -> Memory:
    """A rank's memory with one micro-batch of `budget_frames` padded frames."""
    if stage not in STAGES:
        raise ValueError(f"stage must be one of 0..3, got {stage}")
    if ranks < 1:
        raise ValueError(f"ranks must be >= 1, got {ranks}")
    parameters, gradients, optimizer = states(sizes.parameters, ranks=ranks, stage=stage)
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=budget_frames * activations(sizes, context_frames, checkpointing=checkpointing)
        + budget_frames * peak_layer(sizes, context_frames, checkpointing=checkpointing),
        buckets=bucket_bytes(sizes.parameters) if stage else 0.0,
    )


def states(parameters: int, *, ranks: int, stage: int) -> tuple[float, float, float]:
    """Parameters 2P; gradients gathered in fp32, 4P; fp32 weights and Adam's two moments, 12P.

    Each is divided by N from the stage on that shards it: 3, 2 and 1.
    """
    shared = [ranks if stage >= at else 1 for at in (3, 2, 1)]
    whole = (2.0 * parameters, 4.0 * parameters, 12.0 * parameters)
    return tuple(size / by for size, by in zip(whole, shared, strict=True))  # pyright: ignore[reportReturnType]


def bucket_bytes(parameters: int) -> float:
    """DeepSpeed's bucket of bf16 gradients and the flat copy that is added over the ranks."""
    bucket = deepspeed_config(TrainConfig(), ranks=1, bf16=True)["zero_optimization"]["reduce_bucket_size"]
    return 2 * 2.0 * min(bucket, parameters)


def layer_bytes(sizes: Sizes, context_frames: int) -> float:
    """What a backbone layer keeps a frame for its backward pass: 26H + 8I + 4h + 2T.

    Two norms: their input in fp32 and normalised, before and after the weight, 8H each; q, k, v with the heads
    repeated 6H; what attention gives, twice, 4H; its log-sum 4h and its mask 2T; the MLP's gate, its SiLU, up and
    product 8I.
    """
    return 26 * sizes.hidden + 8 * sizes.mlp + 4 * sizes.heads + 2 * context_frames


def audio_bytes(sizes: Sizes) -> float:
    """What an audio attention keeps a frame: 36H + 10h.

    Keys and values of its five places 20H; norm, in fp32 twice and in bf16 before and after the weight, 12H; q and what
    was heard 4H; five weights a head 10h.
    """
    return 36 * sizes.hidden + 10 * sizes.heads


def activations(sizes: Sizes, context_frames: int, *, checkpointing: bool) -> float:
    """Of a frame, between the forward and the backward pass.

    With checkpointing a backbone layer keeps its input alone, 2H; the audio attentions stand outside of it and keep
    all. Around the layers: the level's MLP and the last norm 18H, features twice 4LF, their fusion 6A, latents 8D.
    """
    layer = 2 * sizes.hidden if checkpointing else layer_bytes(sizes, context_frames)
    around = 18 * sizes.hidden + 4 * sizes.features + 6 * sizes.audio_width + 8 * sizes.latent_width
    return sizes.layers * (layer + audio_bytes(sizes)) + around


def peak_layer(sizes: Sizes, context_frames: int, *, checkpointing: bool) -> float:
    """Of a frame, what the first layer of the backward pass adds: with checkpointing what it computes again.

    By then its own audio attention has let go of what it kept.
    """
    if not checkpointing:
        return 0.0
    return layer_bytes(sizes, context_frames) - audio_bytes(sizes)
