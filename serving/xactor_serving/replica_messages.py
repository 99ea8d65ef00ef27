"""Define the messages between the deployments.

A job holds everything that its work needs, so any replica can do the work, and another replica can retry it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xactor.options import Recommended

# For type checks only: a motion replica starts without the renderer's libraries, and a render replica without the
# motion model's.
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
    """Number of frames in a chunk, which the model denoises together."""
    history_frames: int
    """Maximum number of past frames that the model sees."""
    audio_window: int
    """w, in frames: frame t of the motion depends on the audio features of frames t-w..t+w."""
    windows: WindowSpec
    """The windows of sound from which the audio features are computed."""


@dataclass(frozen=True, kw_only=True)
class RenderFacts:
    """Describe the renderer."""

    image_size: int
    """Side S of the rendered frames, in pixels."""
    latent_dim: int
    """Width D of a motion latent."""
    recommended: Recommended
    """The options that the model recommends."""


@dataclass(frozen=True, kw_only=True)
class ChunkJob:
    """Ask for one chunk of motion: the latents of frames that the model denoises together."""

    seed: int
    """Seed of the video."""
    sampling: SamplingConfig
    """Sampling options of the video."""
    first_frame: int
    """Index of the chunk's first frame, counted from the start of the silence before the sound, as are all frames and
    samples of this message; see `RenderConfig.lead_frames`."""
    past: np.ndarray
    """Latents of the H frames before the chunk, float32 [H, D]."""
    samples: np.ndarray
    """The part of the video's sound that the chunk depends on, float32 [N], mono, 16 kHz."""
    samples_from: int
    """Index of `samples[0]` in the video's sound."""
    known_frames: int
    """Number of the video's frames, from its start, whose audio features can be computed."""
    ended: bool
    """Whether `samples` reaches the end of the sound. If so, the job asks for all remaining frames."""
    buffered_frames: int
    """Number of frames that are made but not played yet. The engine first steps the videos with the fewest of them."""


@dataclass(frozen=True, kw_only=True)
class PortraitJob:
    """Hold the portrait that a video animates."""

    name: str
    """Digest of the pixels, which identifies the portrait."""
    square: np.ndarray
    """The face crop, uint8 [S, S, 3]."""

    @staticmethod
    def of(square: np.ndarray) -> PortraitJob:
        """Return the job for a face crop, uint8 [S, S, 3]."""
        return PortraitJob(name=hashlib.sha256(square.tobytes()).hexdigest()[:16], square=square)


@dataclass(frozen=True, kw_only=True)
class WindowJob:
    """Ask for the frames of one window, a group of frames that the renderer denoises together."""

    portrait: PortraitJob
    """The portrait to show."""
    z: np.ndarray
    """Motion latents of the window's W frames, float32 [W, D]."""
    origin: np.ndarray | None
    """The latent at which the portrait does not move, float32 [D]: the first latent that the motion model made. None
    means the portrait's own latent. See `xactor.render.Window`."""
    seed: int
    """Seed of the video."""
    first_frame: int
    """Index of the window's first frame in the video."""
    config: RenderConfig
    """Rendering options of the video."""
