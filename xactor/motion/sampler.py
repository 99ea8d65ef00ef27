"""Sampling motion: a plan of noise levels from a pure function, and a visible loop over it (Paper 3.3.1)."""

from collections.abc import Iterable, Iterator
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


def sample_motion(
    model: MotionTransformer, audio: Tensor, *, seeds: list[int], config: SamplingConfig | None = None
) -> Tensor:
    """Motion for whole recordings: stored latents float32 [B, T, D].

    Args:
        audio: features [B, T, L, F]; recordings of one length.
        seeds: one a recording. A frame's noise depends on (seed, frame number) alone.
    """
    if len(seeds) != len(audio):
        raise ValueError(f"seeds must be one a recording, {len(audio)}, got {len(seeds)}")
    nothing = torch.zeros(len(seeds), 0, model.config.latent_dim, device=model.device)
    return torch.cat([nothing, *stream_motion(model, [audio], seeds=seeds, config=config)], dim=1)


@torch.inference_mode()
def stream_motion(
    model: MotionTransformer,
    audio: Iterable[Tensor],
    *,
    seeds: list[int],
    config: SamplingConfig | None = None,
) -> Iterator[Tensor]:
    """Motion chunk by chunk, each as soon as its sound is there: stored latents float32 [B, chunk_frames, D], the last
    one shorter. Memory does not grow with the recording.

    Args:
        audio: features [B, n, L, F] piece by piece, in pieces of any length.
        seeds: one a recording.
    """
    config = config or SamplingConfig()
    size, window = model.config.chunk_frames, model.config.audio_window
    capacity = model.config.context_frames - size
    heard = _Heard(audio, model.device)
    past = torch.zeros(len(seeds), 0, model.config.latent_dim, device=model.device)  # standardised
    first = 0
    while (last := min(first + size, heard.listen(first + size + window))) > first:
        start = first - past.shape[1]
        span, real = heard.span(start - window, last + window)
        branches = [_embed(model, span, keep) for keep in ((1.0, 0.0) if config.audio_cfg != 1 else (1.0,))]
        chunk = _sample_chunk(model, branches, real, past, seeds, (start, first, last), config)
        yield model.destandardise(chunk.float())
        past, first = torch.cat([past, chunk], dim=1)[:, -capacity:], last


def _sample_chunk(
    model, branches, real, past, seeds, span: tuple[int, int, int], config: SamplingConfig
) -> Tensor:
    """One chunk [B, last - first, D], given its history [B, first - start, D].

    Args:
        branches: one or two audio embeddings [B, last - start + 2w, A], with audio and without.
        real: bool [B, last - start + 2w], False past the recording's ends.
    """
    start, first, last = span
    scheduler = MotionScheduler()
    capacity = model.config.context_frames - model.config.chunk_frames
    plan = sampling_plan(first - start, last - first, capacity, config).to(past.device)
    levels = plan[:, None, :].expand(-1, len(seeds), -1)  # [steps + 1, B, history + chunk]
    history, chunk = slice(0, first - start), slice(first - start, None)
    # What each part hears reaches w frames past its own.
    heard_before, heard_now = slice(0, first - start + 2 * model.config.audio_window), chunk

    # The history is noised once a chunk; each branch has its own keys and values of it, for all steps.
    past_eps = _noise(seeds, "history", start, first - start, past)
    noised = scheduler.add_noise(past, past_eps, levels[0, :, history])
    caches = [DynamicCache() for _ in branches]
    if first > start:
        for branch, cache in zip(branches, caches, strict=True):
            model(noised, levels[0, :, history], branch[:, heard_before], real[:, heard_before], past=cache)

    z_k = _noise(seeds, "chunk", first, last - first, past)
    for k, k_next in zip(levels[:-1, :, chunk], levels[1:, :, chunk], strict=True):
        velocities = []
        for branch, cache in zip(branches, caches, strict=True):
            velocities.append(model(z_k, k, branch[:, heard_now], real[:, heard_now], past=cache).float())
            cache.crop(first - last)  # removes the chunk's own keys: they change with every step
        z_k = scheduler.step(_guided(velocities, config.audio_cfg), z_k, k, k_next)
    return z_k


def _guided(velocities: list[Tensor], scale: float) -> Tensor:
    """Classifier-free guidance: from the velocity without audio past the one with it."""
    if len(velocities) == 1:
        return velocities[0]
    with_audio, without = velocities
    return without + scale * (with_audio - without)


def _embed(model: MotionTransformer, audio: Tensor, keep: float) -> Tensor:
    return model.embed_audio(audio, torch.full((len(audio),), keep, device=model.device))  # [B, T, A]


def _noise(seeds: list[int], purpose: str, first: int, frames: int, like: Tensor) -> Tensor:
    rows = [frame_noise(seed, purpose, first, frames, like.shape[-1]) for seed in seeds]
    return torch.stack(rows).to(like)


class _Heard:
    """Audio features as they arrive, of which no more is kept than was last asked for."""

    def __init__(self, pieces: Iterable[Tensor], device: torch.device):
        self._pieces, self._device = iter(pieces), device
        self._kept: Tensor | None = None  # [B, n, L, F], from frame `_first` on
        self._first = 0

    def listen(self, until: int) -> int:
        """Waits for `until` frames, or the recording's end: how many there are now."""
        while self._end < until and (piece := next(self._pieces, None)) is not None:
            piece = piece.to(self._device)
            self._kept = piece if self._kept is None else torch.cat([self._kept, piece], dim=1)
        return self._end

    def span(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Frames first..last, [B, last - first, L, F], and which of them exist, bool [B, last - first]. What is before
        them is forgotten."""
        assert self._kept is not None
        assert max(first, 0) >= self._first
        self._kept, self._first = self._kept[:, max(first, 0) - self._first :], max(first, 0)
        inside = self._kept[:, : last - self._first]
        before, after = self._first - first, max(last - self._end, 0)
        real = torch.ones(inside.shape[:2], dtype=torch.bool, device=self._device)
        return pad(inside, (0, 0, 0, 0, before, after)), pad(real, (before, after))

    @property
    def _end(self) -> int:
        return self._first + (0 if self._kept is None else self._kept.shape[1])
