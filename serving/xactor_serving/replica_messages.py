"""Messages between the deployments.

A job holds all that its work needs, so that any replica can do it, and another replica can retry it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

# A motion replica starts without the renderer's libraries, and a render replica without the motion model's.
if TYPE_CHECKING:
    from xactor.audio import WindowSpec
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


@dataclass(frozen=True, kw_only=True)
class MotionFacts:
    """Describe the motion model."""

    latent_dim: int
    """Width D of a motion latent."""
    chunk_frames: int
    """Frames of a chunk."""
    history_frames: int
    """Past frames that the model sees."""
    audio_window: int
    """Frames of sound after a chunk that the model uses."""
    windows: WindowSpec
    """Windows of the audio features."""


@dataclass(frozen=True, kw_only=True)
class RenderFacts:
    """Describe the renderer."""

    image_size: int
    """Side of its frames in pixels."""
    latent_dim: int
    """Width D of a motion latent."""


@dataclass(frozen=True, kw_only=True)
class ChunkJob:
    """Ask for one chunk of motion."""

    seed: int
    """Seed of the video."""
    sampling: SamplingConfig
    """Sampling options of the video."""
    first_frame: int
    """Number of the chunk's first frame in the video."""
    past: np.ndarray
    """Latents before the chunk, float32 [H, D]."""
    samples: np.ndarray
    """Sound, float32 [N], mono, 16 kHz."""
    samples_from: int
    """Number of the first of `samples` in the video's sound."""
    known_frames: int
    """Frame up to which the sound suffices."""
    ended: bool
    """Whether the sound is complete. Then the job asks for all remaining frames."""
    buffered_frames: int
    """Frames that the viewer can still play. The stream with the fewest steps first."""


@dataclass(frozen=True, kw_only=True)
class PortraitJob:
    """Hold the portrait that windows show."""

    name: str
    """Digest of the pixels."""
    square: np.ndarray
    """The face's square, uint8 [S, S, 3]."""

    @staticmethod
    def of(square: np.ndarray) -> PortraitJob:
        """Return the job of a face's square."""
        return PortraitJob(name=hashlib.sha256(square.tobytes()).hexdigest()[:16], square=square)


@dataclass(frozen=True, kw_only=True)
class WindowJob:
    """Ask for the frames of one window."""

    portrait: PortraitJob
    """The portrait to show."""
    z: np.ndarray
    """Motion latents, float32 [W, D]."""
    origin: np.ndarray | None
    """The video's first latent, float32 [D], see `xactor.render.Window`."""
    seed: int
    """Seed of the video."""
    first_frame: int
    """Number of the window's first frame in the video."""
    config: RenderConfig
    """Rendering options of the video."""
