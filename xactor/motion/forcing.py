"""Diffusion forcing: the training objective of the motion model, with the ablations of Table 2 (Paper 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xactor.motion.forcing_config import ForcingConfig
from xactor.motion.masks import real_frames
from xactor.motion.noise_levels import MAX_LEVEL
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer
from xactor.randomness import keyed_generator


@dataclass(frozen=True)
class Draw:
    """One sample's own randomness: noise eps [T, D], levels k [T], and whether its audio is kept (1.0 or 0.0)."""

    eps: Tensor
    k: Tensor
    keep: float


def draw(
    key: tuple[str | int, ...], frames: int, latent_dim: int, chunk_frames: int, config: ForcingConfig
) -> Draw:
    """A sample's randomness from its key (seed, epoch, clip, start) alone: no rank, batch or step has a part in it."""
    generator = keyed_generator(*key)
    keep = float(torch.rand((), generator=generator) >= config.audio_drop)
    levels = torch.randint(MAX_LEVEL + 1, (frames,), generator=generator)
    if config.noise == "per_chunk":
        levels = levels[torch.arange(frames) // chunk_frames * chunk_frames]
    return Draw(torch.randn(frames, latent_dim, generator=generator), levels, keep)


@dataclass(frozen=True)
class ForcingBatch:
    """What the objective needs, padded to the longest of the batch.

    z [B, T, D] stored latents; audio [B, T, L, F]; frames int [B]; weight [B], 0 for a sample that must not count;
    eps [B, T, D], k [B, T] and keep [B], each sample's own draw.
    """

    z: Tensor
    audio: Tensor
    frames: Tensor
    weight: Tensor
    eps: Tensor
    k: Tensor
    keep: Tensor

    def to(self, device: torch.device | str) -> "ForcingBatch":
        return ForcingBatch(**{name: value.to(device) for name, value in vars(self).items()})

    @classmethod
    def build(
        cls, z: Tensor, audio: Tensor, frames: Tensor, weight: Tensor, draws: list[Draw]
    ) -> "ForcingBatch":
        width = z.shape[1]
        eps = torch.stack([pad(d.eps, (0, 0, 0, width - len(d.eps))) for d in draws])  # [B, T, D]
        k = torch.stack([pad(d.k, (0, width - len(d.k))) for d in draws])  # [B, T]
        return cls(z, audio, frames, weight, eps, k, torch.tensor([d.keep for d in draws]))


class DiffusionForcing(nn.Module):
    """The objective as a module, so that an engine such as DeepSpeed's wraps model and loss together."""

    def __init__(self, model: MotionTransformer, config: ForcingConfig):
        super().__init__()
        self.model = model
        self.forcing = config
        self.scheduler = MotionScheduler()

    def forward(self, batch: ForcingBatch) -> Tensor:
        """The squared error of the velocity, averaged over D and summed over the real frames: a scalar.

        Divide by the number of frames for the mean. Ours: every frame weighs the same, where Equation 3 averages
        per chunk; they differ only in a clip's short last chunk.
        """
        model, z = self.model, self.model.standardise(batch.z)
        z_k = self.scheduler.add_noise(z, batch.eps, batch.k)  # [B, T, D]
        target = self.scheduler.velocity(z, batch.eps, batch.k)
        audio = model.embed_audio(batch.audio, batch.keep)  # [B, T, A]
        audio, audio_real = window_padded(audio, batch.frames, model.config.audio_window)
        clean = z if self.forcing.forcing == "teacher" else None
        v = model(z_k, batch.k, audio, audio_real, frames=batch.frames, clean=clean)
        error = (v.float() - target).square().mean(-1)  # [B, T]
        counts = real_frames(batch.frames, error.shape[1]) * batch.weight[:, None]
        return (error * counts).sum()


def window_padded(audio: Tensor, frames: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, A] of whole clips as the model takes them: [B, T + 2w, A], masked past the clips' ends."""
    real = real_frames(frames, audio.shape[1])
    return pad(audio, (0, 0, window, window)), pad(real, (window, window))
