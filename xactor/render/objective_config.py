"""Configure the loss of stage 1, which trains the renderer and the motion encoder.

This module imports no torch, because command lines read it.
"""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["vae", "motion", "frames", "temporal"]
"""A phase of stage 1.

`vae` trains the autoencoder if it starts from random weights. `motion` trains the motion encoder and the guess
network. `frames` trains everything except the temporal layers, on single frames. `temporal` trains the temporal layers.
"""

PHASES: tuple[Phase, ...] = ("vae", "motion", "frames", "temporal")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Configure the loss of stage 1."""

    kl_weight: float = 1e-5
    """Weight, >= 0, of the KL divergence of the motion latent z from the standard normal, summed over the dimensions of
    z. The denoising error has weight 1."""
    motion_drop: float = 0.1
    """Probability, 0 <= p < 1, that the motion is dropped, for classifier-free guidance."""
    motion_weight: float = 1.0
    """Weight, >= 0, of the error of the guess network, which turns one frame of a clip into another by the change of z.

    This loss teaches the motion encoder from the first step what moves. The gradient through the UNet does so only
    after the UNet has learned to use the reference, and by then z has collapsed. X-NeMo has a second decoder for the
    same purpose."""
    controls_weight: float = 1.0
    """Weight, >= 0, of the motion encoder's error in predicting the controls, for clips that have a control track."""
    landmark_weight: float = 10.0
    """Weight, >= 0, of the error of the landmarks that the guess network moves, for clips that have landmarks. The
    error is in units of half the picture's side."""
    mouth_weight: float = 2.0
    """Additional weight, >= 0, of the mouth in the error of the guess network. The whole face crop has weight 1. The
    mouth is small, but it shows the speech."""
    person_weight: float = 0.003
    """Weight, >= 0, of the share of z, 0..1, that all frames of a clip have in common. This share describes the person
    and not the motion."""

    def __post_init__(self):
        for name in (
            "kl_weight",
            "motion_weight",
            "controls_weight",
            "landmark_weight",
            "mouth_weight",
            "person_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.motion_drop < 1:
            raise ValueError(f"motion_drop must be >= 0 and < 1, got {self.motion_drop}")
