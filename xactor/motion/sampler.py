"""Sampling motion: a plan of noise levels from a pure function, and a visible loop over it (Paper 3.3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from xactor.motion.history import HISTORIES, History, history_levels
from xactor.motion.scheduler import MAX_LEVEL, MotionScheduler
from xactor.motion.transformer import MotionTransformer
from xactor.randomness import frame_noise


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """
    steps: DDIM steps a chunk (the paper's 50).
    audio_cfg: guidance scale (the paper's 3); 1 is without guidance.
    history, history_level: see `history_levels`.
    """

    steps: int = 50
    audio_cfg: float = 3.0
    history: History = "linear"
    history_level: int = 0

    def __post_init__(self):
        if not 1 <= self.steps <= MAX_LEVEL:
            raise ValueError(f"steps must be within 1..{MAX_LEVEL}, got {self.steps}")
        if not 1 <= self.audio_cfg <= 20:
            raise ValueError(f"audio_cfg must be within 1..20, got {self.audio_cfg}")
        if self.history not in HISTORIES:
            raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {self.history!r}")
        history_levels(0, 1, self.history, history_level=self.history_level)


def sampling_plan(history: int, chunk: int, capacity: int, config: SamplingConfig) -> Tensor:
    """The noise level of every frame at every step: int64 [steps + 1, history + chunk].

    The history keeps its levels; the chunk goes from pure noise (1000) to clean (0).
    """
    past = history_levels(history, capacity, config.history, history_level=config.history_level)
    falling = torch.linspace(MAX_LEVEL, 0, config.steps + 1).round().long()
    return torch.cat([past.expand(config.steps + 1, -1), falling[:, None].expand(-1, chunk)], dim=1)


@torch.inference_mode()
def sample_motion(
    model: MotionTransformer, audio: Tensor, *, seeds: list[int], config: SamplingConfig | None = None
) -> Tensor:
    """Motion for whole recordings, chunk by chunk: stored latents float32 [B, T, D].

    Args:
        audio: features [B, T, L, F]; recordings of one length.
        seeds: one a recording. A frame's noise depends on (seed, frame number) alone.
    """
    config = config or SamplingConfig()
    size = model.config.chunk_frames
    capacity = model.config.context_frames - size
    batch, total = audio.shape[:2]
    if len(seeds) != batch:
        raise ValueError(f"seeds must be one a recording, {batch}, got {len(seeds)}")
    branches = [_embed(model, audio, keep) for keep in ((1.0, 0.0) if config.audio_cfg != 1 else (1.0,))]
    z = torch.zeros(batch, 0, model.config.latent_dim, device=model.device)  # standardised
    for first in range(0, total, size):
        last = min(first + size, total)
        start = max(first - capacity, 0)
        z = torch.cat([z, _sample_chunk(model, branches, z, seeds, (start, first, last), config)], dim=1)
    return model.destandardise(z.float())


def _sample_chunk(model, branches, z, seeds, span: tuple[int, int, int], config: SamplingConfig) -> Tensor:
    """One chunk [B, last - first, D], given the history z[:, start:first]."""
    start, first, last = span
    scheduler = MotionScheduler()
    capacity = model.config.context_frames - model.config.chunk_frames
    plan = sampling_plan(first - start, last - first, capacity, config).to(z.device)
    levels = plan[:, None, :].expand(-1, len(seeds), -1)  # [steps + 1, B, history + chunk]
    history, chunk = slice(0, first - start), slice(first - start, None)

    # The history is noised once a chunk; each branch has its own keys and values of it, for all steps.
    past_eps = _noise(seeds, "history", start, first - start, z)
    past = scheduler.add_noise(z[:, start:first], past_eps, levels[0, :, history])
    caches = [_history_cache(model, branch, past, levels[0, :, history], start) for branch in branches]

    z_k = _noise(seeds, "chunk", first, last - first, z)
    for k, k_next in zip(levels[:-1, :, chunk], levels[1:, :, chunk], strict=True):
        velocities = []
        for branch, cache in zip(branches, caches, strict=True):
            velocities.append(model(z_k, k, *_hear(model, branch, first, last), past=cache).float())
            cache.crop(first - last)  # removes the chunk's own keys: they change with every step
        z_k = scheduler.step(_guided(velocities, config.audio_cfg), z_k, k, k_next)
    return z_k


def _guided(velocities: list[Tensor], scale: float) -> Tensor:
    """Classifier-free guidance: from the velocity without audio past the one with it."""
    if len(velocities) == 1:
        return velocities[0]
    with_audio, without = velocities
    return without + scale * (with_audio - without)


def _history_cache(model, branch: Tensor, past: Tensor, levels: Tensor, start: int) -> DynamicCache:
    cache = DynamicCache()
    if past.shape[1]:
        model(past, levels, *_hear(model, branch, start, start + past.shape[1]), past=cache)
    return cache


def _embed(model: MotionTransformer, audio: Tensor, keep: float) -> Tensor:
    kept = torch.full((len(audio),), keep, device=model.device)
    return model.embed_audio(audio.to(model.device), kept)  # [B, T, A]


def _hear(model: MotionTransformer, audio: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Embeddings of frames first-w..last+w, and which of them exist."""
    window = model.config.audio_window
    low, high = max(first - window, 0), min(last + window, audio.shape[1])
    before, after = low - (first - window), (last + window) - high
    real = torch.ones(audio.shape[0], high - low, dtype=torch.bool, device=audio.device)
    return pad(audio[:, low:high], (0, 0, before, after)), pad(real, (before, after))


def _noise(seeds: list[int], purpose: str, first: int, frames: int, like: Tensor) -> Tensor:
    rows = [frame_noise(seed, purpose, first, frames, like.shape[-1]) for seed in seeds]
    return torch.stack(rows).to(like)
