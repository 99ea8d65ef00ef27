"""Define the options of motion training. Imports no torch: command lines read this module."""

from dataclasses import dataclass
from typing import Literal

Attention = Literal["chunk", "causal"]


@dataclass(frozen=True, kw_only=True)
class ForcingConfig:
    """Configure the training objective of the motion model."""

    forcing: Literal["diffusion", "teacher"] = "diffusion"
    """`diffusion` noises the history (Equation 3), `teacher` keeps it clean (Equation 2)."""
    noise: Literal["per_frame", "per_chunk"] = "per_frame"
    """Draw one noise level per frame (the paper's asynchronous scheme) or per chunk."""
    chunk_lengths: tuple[int, ...] = ()
    """Chunk lengths in frames: divisors of the model's chunk_frames. One length is drawn for each sample, so that the
    model can be sampled with any of them. Empty: always the model's chunk_frames (the paper's way)."""
    audio_drop: float = 0.1
    """Probability, 0..1, that the whole audio of a sample is dropped."""

    def __post_init__(self):
        # JSON has lists in place of tuples.
        object.__setattr__(self, "chunk_lengths", tuple(self.chunk_lengths))
        if not 0 <= self.audio_drop <= 1:
            raise ValueError(f"audio_drop must be within 0..1, got {self.audio_drop}")
