"""What the deployments say to each other: all that a piece of work needs, so that any replica can do it, and again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a motion replica starts without the renderer's libraries, and the other way round
    from xactor.audio import WindowSpec
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


@dataclass(frozen=True, kw_only=True)
class MotionFacts:
    """What the motion model says of itself.

    Attributes:
        history_frames: how much of its past it sees. audio_window: how many frames of sound past a chunk it hears.
        windows: where its audio features' windows stand.
    """

    latent_dim: int
    chunk_frames: int
    history_frames: int
    audio_window: int
    windows: WindowSpec


@dataclass(frozen=True, kw_only=True)
class RenderFacts:
    """What the renderer says of itself: its frames' side, and its motion latents' width."""

    image_size: int
    latent_dim: int


@dataclass(frozen=True, kw_only=True)
class ChunkJob:
    """One chunk of one performance.

    Attributes:
        seed, sampling: of the performance.
        first_frame: of the chunk. past: the stored latents before it, float32 [H, D].
        samples: sound, float32 [N], mono, 16 kHz, from sample `samples_from` on.
        known_frames: up to which frame the sound suffices. ended: it is all there is, and the rest is to be made.
        buffered_frames: how many frames the viewer has before it has to wait; who has least goes first.
    """

    seed: int
    sampling: SamplingConfig
    first_frame: int
    past: np.ndarray
    samples: np.ndarray
    samples_from: int
    known_frames: int
    ended: bool
    buffered_frames: int


@dataclass(frozen=True, kw_only=True)
class PortraitJob:
    """Whom windows show.

    Attributes:
        name: the same for the same pixels. square: the face's, uint8 [S, S, 3].
    """

    name: str
    square: np.ndarray

    @staticmethod
    def of(square: np.ndarray) -> PortraitJob:
        return PortraitJob(name=hashlib.sha256(square.tobytes()).hexdigest()[:16], square=square)


@dataclass(frozen=True, kw_only=True)
class WindowJob:
    """One window of one video.

    Attributes:
        z: motion latents float32 [W, D]. origin: the performance's first one, [D]; see `Window`.
        seed, first_frame, config: see `Renderer.window`.
    """

    portrait: PortraitJob
    z: np.ndarray
    origin: np.ndarray | None
    seed: int
    first_frame: int
    config: RenderConfig
