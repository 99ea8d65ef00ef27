"""Define the options of motion training.

This module imports no torch, because command lines read it.
"""

from dataclasses import dataclass
from typing import Literal

Attention = Literal["chunk", "causal"]
"""Self-attention of the motion model: see `xactor.motion.masks.visible`."""


@dataclass(frozen=True, kw_only=True)
class ForcingConfig:
    """Configure the training objective of the motion model."""

    forcing: Literal["diffusion", "teacher"] = "diffusion"
    """`diffusion`: the frames that a chunk sees before it are noised (Equation 3). `teacher`: they are clean
    (Equation 2)."""
    noise: Literal["per_frame", "per_chunk"] = "per_frame"
    """Draw one noise level per frame (the paper's asynchronous scheme) or per chunk."""
    chunk_lengths: tuple[int, ...] = ()
    """Lengths, in frames, of the chunks that are denoised together: divisors of the model's chunk_frames. One length
    is drawn for each sample, so that the trained model can generate motion with any of them. Empty: always the model's
    chunk_frames (the paper's way)."""
    audio_drop: float = 0.1
    """Probability, 0..1, that the whole audio of a sample is dropped."""

    def __post_init__(self):
        # A config that is read from JSON holds a list instead of a tuple.
        object.__setattr__(self, "chunk_lengths", tuple(self.chunk_lengths))
        if not 0 <= self.audio_drop <= 1:
            raise ValueError(f"audio_drop must be within 0..1, got {self.audio_drop}")
