"""Estimate the GPU memory that a rank needs to train the motion model.

A rank is one process of the training, with one GPU. In this file, `stage` means a stage of DeepSpeed's ZeRO, which
divides parameters, gradients and optimizer states among the ranks.

Symbols: H width of the backbone, I width of its MLP, h number of its heads, A width of the audio embedding, D width of
a latent, L x F audio features of a frame, T frames of a sample, P number of parameters, N number of ranks. Memory is in
bytes, and values are in bf16 unless stated otherwise.
"""

from dataclasses import dataclass, replace

import torch

from xactor_platform.data.index import CorpusShape
from xactor_platform.training.engine import deepspeed_config
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2_config import MotionConfig
from xactor_platform.training.train_config import TrainConfig

# Stages of DeepSpeed's ZeRO.
ZERO_STAGES = (0, 1, 2, 3)
# Ours: CUDA's context, buffers of NCCL and cuBLAS, and fragmentation of the allocator.
OVERHEAD_BYTES = 4e9


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Hold the sizes of a model and of its input."""

    parameters: int
    """P, the number of parameters of the model."""
    blocks: int
    """Number of parameters in the layers that gradient checkpointing recomputes: the backbone's layers and the audio
    attentions."""
    hidden: int
    """H, the width of the backbone."""
    mlp: int
    """I, the width of the backbone's MLP."""
    layers: int
    """Number of layers of the backbone."""
    heads: int
    """h, the number of attention heads of the backbone."""
    audio_width: int
    """A, the width of the audio embedding."""
    latent_width: int
    """D, the width of a latent."""
    features: int
    """L x F, the number of audio features of a frame."""


def sizes_of(config: MotionConfig, shape: CorpusShape) -> Sizes:
    """Return the sizes of a model. The model is built on the meta device, without memory for its weights."""
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
        blocks=sum(
            p.numel() for part in (model.backbone.layers, model.audio_attention) for p in part.parameters()
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Hold the peak memory of one rank in bytes. The peak is in the backward pass."""

    parameters: float
    """Weights in bf16."""
    gradients: float
    """Gradients in fp32."""
    optimizer: float
    """Weights in fp32, and Adam's two moments."""
    activations: float
    """Activations that are kept for the backward pass, and activations of the block that is recomputed."""
    buckets: float
    """DeepSpeed's communication buffers."""
    overhead: float = OVERHEAD_BYTES
    """Estimate of everything else."""

    @property
    def states(self) -> float:
        """Return the bytes of parameters, gradients and optimizer."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """Return the sum of all parts in bytes."""
        return self.states + self.activations + self.buckets + self.overhead


def memory(
    sizes: Sizes, *, ranks: int, stage: int, budget_frames: int, context_frames: int, checkpointing: bool
) -> Memory:
    """Return the memory that a rank needs to train on one micro-batch.

    Args:
        sizes: sizes of the model and of its input.
        ranks: N, the number of ranks.
        stage: stage of ZeRO, 0..3.
        budget_frames: padded frames of the micro-batch.
        context_frames: T, the frames of a sample.
        checkpointing: whether the backward pass recomputes the activations of blocks.

    Raises:
        ValueError: `stage` or `ranks` is out of bounds.
    """
    if stage not in ZERO_STAGES:
        raise ValueError(f"stage must be one of 0..3, got {stage}")
    if ranks < 1:
        raise ValueError(f"ranks must be >= 1, got {ranks}")
    parameters, gradients, optimizer = states(sizes.parameters, ranks=ranks, stage=stage)
    kept_per_frame = activations(sizes, context_frames, checkpointing=checkpointing)
    recomputed_per_frame = peak_block(sizes, context_frames) if checkpointing else 0.0
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=budget_frames * kept_per_frame + budget_frames * recomputed_per_frame,
        buckets=bucket_bytes(sizes.parameters) if stage else 0.0,
    )


def states(parameters: int, *, ranks: int, stage: int) -> tuple[float, float, float]:
    """Return the bytes of parameters, gradients and optimizer states of one rank.

    Without ZeRO they are 2P (bf16), 4P (accumulated in fp32) and 12P (fp32 weights and Adam's two moments). ZeRO
    divides the parameters by N in stage 3, the gradients in stages 2 and 3, and the optimizer states in stages 1 to 3.
    """
    sharded_from_stage = (3, 2, 1)
    parts = [ranks if stage >= first else 1 for first in sharded_from_stage]
    unsharded = (2.0 * parameters, 4.0 * parameters, 12.0 * parameters)
    return tuple(size / count for size, count in zip(unsharded, parts, strict=True))  # pyright: ignore[reportReturnType]


def bucket_bytes(parameters: int, config: TrainConfig | None = None) -> float:
    """Return the bytes of DeepSpeed's bucket of bf16 gradients, and of the flat copy that is reduced over the ranks.

    The bucket has its full size for a small model too. With `overlap_comm` there are two buckets. Not counted: the
    reduced gradient of one parameter, in fp32.
    """
    options = deepspeed_config(config or TrainConfig(), ranks=1, bf16=True)["zero_optimization"]
    bucket, buckets = options["reduce_bucket_size"], 2 if options["overlap_comm"] else 1
    # 2 bytes per element.
    return 2.0 * (buckets * bucket + min(bucket, parameters))


def layer_bytes(sizes: Sizes, context_frames: int) -> float:
    """Return the bytes that a backbone layer keeps per frame for its backward pass: 26H + 8I + 4h + 2T.

    - Two norms, 8H each: the input in fp32, and the normalised input before and after the weight.
    - q, k and v with repeated heads: 6H.
    - The output of attention, twice: 4H. The log-sum-exp of attention: 4h. The attention mask: 2T.
    - The MLP's gate, SiLU of the gate, up projection and product: 8I.
    """
    return 26 * sizes.hidden + 8 * sizes.mlp + 4 * sizes.heads + 2 * context_frames


def audio_bytes(sizes: Sizes) -> float:
    """Return the bytes that a layer's attention to the audio keeps per frame for its backward pass: 36H + 10h.

    - Keys and values of the five positions of a frame's audio window: 20H.
    - The norm, in fp32 twice and in bf16 before and after the weight: 12H.
    - q and the output: 4H.
    - Five attention weights per head: 10h.
    """
    return 36 * sizes.hidden + 10 * sizes.heads


def activations(sizes: Sizes, context_frames: int, *, checkpointing: bool) -> float:
    """Return the bytes per frame that are kept between the forward and the backward pass.

    A block is a layer of the backbone and the audio attention that follows it. With checkpointing, a block keeps only
    its input, 2H. Outside the blocks, the MLP of the noise level and the last norm keep 18H, the audio features 4LF
    (two copies), the fusion of the audio features 6A, and the latents 8D.
    """
    block = 2 * sizes.hidden if checkpointing else layer_bytes(sizes, context_frames) + audio_bytes(sizes)
    outside_blocks = 18 * sizes.hidden + 4 * sizes.features + 6 * sizes.audio_width + 8 * sizes.latent_width
    return sizes.layers * block + outside_blocks


def peak_block(sizes: Sizes, context_frames: int) -> float:
    """Return the bytes per frame that exist, in addition, while the backward pass recomputes a block.

    The peak is in the backward pass of the audio attention, which comes before that of the layer. Its gradients need
    about 12H, by the dry run and by torch's memory tracker.
    """
    return layer_bytes(sizes, context_frames) + audio_bytes(sizes) + 12 * sizes.hidden
