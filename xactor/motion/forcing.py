"""Define diffusion forcing, the training objective of the motion model, with the ablations of Table 2 (Paper 3.3).

Diffusion forcing adds noise to each frame at a level of its own. The model learns to predict the velocity, a mix of
noise and signal, of every frame.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from xactor.motion.forcing_config import ForcingConfig
from xactor.motion.masks import real_frames
from xactor.motion.noise_levels import MAX_LEVEL
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer
from xactor.randomness import keyed_generator
from xactor.transfer import to_device


@dataclass(frozen=True)
class Draw:
    """Hold the random choices of one sample."""

    eps: Tensor
    """Noise, float32 [T, D]."""
    k: Tensor
    """Noise levels 0..1000, int64 [T]."""
    keep: float
    """1.0 if the sample keeps its audio, 0.0 if its audio is dropped."""
    chunk_frames: int | None = None
    """Length of the sample's chunks in frames, if it was drawn. None: the model's chunk_frames."""


def draw(
    key: tuple[str | int, ...], frames: int, latent_dim: int, chunk_frames: int, config: ForcingConfig
) -> Draw:
    """Draw the random choices of one sample. They depend only on the sample's key, not on rank, batch or step.

    Args:
        key: Identifies the sample: (seed, epoch, clip, start).
        frames: T, the sample's length.
        latent_dim: D, the width of a latent.
        chunk_frames: Length of a chunk in frames, used unless `config.chunk_lengths` gives lengths to draw from.
        config: The training objective.
    """
    generator = keyed_generator(*key)
    drawn = None
    if lengths := config.chunk_lengths:
        drawn = chunk_frames = lengths[int(torch.randint(len(lengths), (), generator=generator))]
    keep = float(torch.rand((), generator=generator) >= config.audio_drop)
    levels = torch.randint(MAX_LEVEL + 1, (frames,), generator=generator)
    if config.noise == "per_chunk":
        # Each frame takes the level of its chunk's first frame.
        levels = levels[torch.arange(frames) // chunk_frames * chunk_frames]
    return Draw(torch.randn(frames, latent_dim, generator=generator), levels, keep, drawn)


@dataclass(frozen=True)
class ForcingBatch:
    """Hold the inputs of the objective, padded to the longest sample of the batch."""

    z: Tensor
    """Stored latents [B, T, D]."""
    audio: Tensor
    """Audio features [B, T, L, F]."""
    frames: Tensor
    """Lengths without padding, int [B]."""
    weight: Tensor
    """Weight of each sample in the loss, float [B]; 0 for a sample that only fills up the batches of a step."""
    eps: Tensor
    """Noise, [B, T, D]."""
    k: Tensor
    """Noise levels 0..1000, int64 [B, T]."""
    keep: Tensor
    """1 if the sample keeps its audio, 0 if its audio is dropped, [B]."""
    chunk_frames: Tensor | None = None
    """Length of each sample's chunks in frames, int64 [B]. None: the model's chunk_frames."""

    def to(self, device: torch.device | str) -> "ForcingBatch":
        """Return the batch on another device. The copy to a GPU does not wait: see `to_device`."""
        moved: dict[str, Any] = {
            name: None if value is None else to_device(value, device) for name, value in vars(self).items()
        }
        return ForcingBatch(**moved)

    @classmethod
    def build(
        cls, z: Tensor, audio: Tensor, frames: Tensor, weight: Tensor, draws: list[Draw]
    ) -> "ForcingBatch":
        """Build a batch from padded tensors and one draw per sample. The draws are padded here."""
        width = z.shape[1]
        eps = torch.stack([pad(d.eps, (0, 0, 0, width - len(d.eps))) for d in draws])  # [B, T, D]
        k = torch.stack([pad(d.k, (0, width - len(d.k))) for d in draws])  # [B, T]
        keep = torch.tensor([d.keep for d in draws])
        drawn = [d.chunk_frames for d in draws]
        chunk_frames = None if None in drawn else torch.tensor(drawn)  # [B]
        return cls(z, audio, frames, weight, eps, k, keep, chunk_frames)


class DiffusionForcing(nn.Module):
    """Hold the motion model and its loss in one module, so that a training engine such as DeepSpeed's can wrap both."""

    def __init__(self, model: MotionTransformer, config: ForcingConfig):
        super().__init__()
        self.model = model
        self.forcing = config
        self.scheduler = MotionScheduler()

    def forward(self, batch: ForcingBatch) -> Tensor:
        """Return the squared error of the velocity, averaged over D and summed over the real frames: a scalar.

        A sample's frames count with the sample's weight. The caller divides the sum by a number of frames to get a
        mean.

        Ours: every frame of a sample has the same weight, while Equation 3 averages per chunk. The two differ only in
        the short last chunk of a clip.
        """
        model, z = self.model, self.model.standardise(batch.z)
        z_k = self.scheduler.add_noise(z, batch.eps, batch.k)  # [B, T, D]
        target = self.scheduler.velocity(z, batch.eps, batch.k)  # [B, T, D]
        audio = model.embed_audio(batch.audio, batch.keep)  # [B, T, A]
        audio, audio_real = pad_to_windows(audio, batch.frames, model.config.audio_window)
        clean = z if self.forcing.forcing == "teacher" else None
        v = model(
            z_k,
            batch.k,
            audio,
            audio_real,
            frames=batch.frames,
            chunk_frames=batch.chunk_frames,
            clean=clean,
        )  # [B, T, D]
        error = (v.float() - target).square().mean(-1)  # [B, T]
        weights = real_frames(batch.frames, error.shape[1]) * batch.weight[:, None]  # [B, T]
        return (error * weights).sum()


def pad_to_windows(audio: Tensor, frames: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Pad the audio of samples by w frames at both ends, because frame t attends to the audio of frames t-w..t+w.

    Args:
        audio: Embeddings [B, T, A].
        frames: Lengths without padding, int [B].
        window: w, the reach of the audio window in frames.

    Returns:
        The embeddings [B, T + 2w, A], and bool [B, T + 2w], False before a sample's start and past its end.
    """
    real = real_frames(frames, audio.shape[1])
    return pad(audio, (0, 0, window, window)), pad(real, (window, window))
