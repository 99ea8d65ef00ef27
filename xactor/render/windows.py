"""Define the windows of a video: how many frames they have, where they start, and how neighbouring windows blend.

A window is frames that the renderer denoises together. This module imports neither torch nor diffusers, because
processes that render nothing use it too.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

# The type of motion latents [n, D]: a torch tensor or a NumPy array.
Latents = TypeVar("Latents", bound=Any)
# Frames of silence in which relative motion begins, before the sound. The number is even, so that it does not change
# how half a frame of sound is rounded.
_LEAD_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Configure how a video is rendered."""

    steps: int = 25
    """DDIM steps per window, 0..1000. The paper uses 25. With 0, the frames show the portrait as the guess network
    moves it, without denoising. A renderer without this network needs at least 1."""
    cfg: float = 2.5
    """Scale of classifier-free guidance by the motion, 1..20. The paper uses 2.5; 1 means no guidance."""
    window_frames: int = 16
    """Number of frames that are denoised together, at least 1."""
    relative_motion: bool = True
    """Move the portrait by the change of motion since a short silence before the sound, in which the portrait is
    unmoved. False: show the motion as it is (the paper's way)."""
    overlap_frames: int = 4
    """Number of frames that two neighbouring windows share, at most half of window_frames."""

    def __post_init__(self):
        if not 0 <= self.steps <= 1000:
            raise ValueError(f"render steps must be within 0..1000, got {self.steps}")
        if not 1 <= self.cfg <= 20:
            raise ValueError(f"render cfg must be within 1..20, got {self.cfg:g}")
        if self.window_frames < 1:
            raise ValueError(f"window_frames must be >= 1, got {self.window_frames}")
        if not 0 <= self.overlap_frames <= self.window_frames // 2:
            raise ValueError(
                f"overlap_frames must be within 0..{self.window_frames // 2}, half of window_frames, "
                f"got {self.overlap_frames}"
            )

    @property
    def lead_frames(self) -> int:
        """Return the number of frames of silence to put before the sound. Their motion is made and not shown.

        Ours: the first of them stands for the portrait, which usually has its mouth closed. The first frame of the
        sound cannot, because speech may begin inside a vowel.
        """
        return _LEAD_FRAMES if self.relative_motion else 0

    @property
    def stride(self) -> int:
        """Return the number of frames from the start of one window to the start of the next."""
        return self.window_frames - self.overlap_frames


def render_windows(frames: int, config: RenderConfig) -> list[tuple[int, int]]:
    """Return the windows of a video as (first, end): the first frame, and the frame after the last.

    Each window starts `config.stride` frames after the previous window.

    Args:
        frames: Number of frames of the video.
        config: Sizes of the windows.
    """
    starts = range(0, max(frames - config.overlap_frames, 1), config.stride)
    return [(start, min(start + config.window_frames, frames)) for start in starts] if frames else []


class Cutter(Generic[Latents]):
    """Cut latents that arrive in pieces into the windows of `render_windows`.

    A window is (number of the first frame, latents [W, D], origin [D]). The origin is the first latent of all, see
    `Window`.

    Args:
        config: Sizes of the windows.
        join: Concatenates latents: `torch.cat` or `np.concatenate`.
        lead_frames: Number of latents before those of frame 0. They are in no window.
    """

    def __init__(
        self, config: RenderConfig, join: Callable[[list[Latents]], Latents], *, lead_frames: int = 0
    ):
        self._config, self._join, self._lead_frames = config, join, lead_frames
        self._origin: Latents | None = None
        self._held: Latents | None = None
        # Latents that have arrived and that later windows need are in `_held`. This is the frame number of the first.
        self._first = 0

    def add(self, piece: Latents) -> Iterator[tuple[int, Latents, Latents]]:
        """Yield the windows that the next latents [n, D], n >= 1, complete."""
        origin = self._origin = piece[0] if self._origin is None else self._origin
        skipped = min(self._lead_frames, len(piece))
        self._lead_frames -= skipped
        piece = piece[skipped:]
        held = piece if self._held is None else self._join([self._held, piece])
        while len(held) >= self._config.window_frames:
            yield self._first, held[: self._config.window_frames], origin
            held, self._first = held[self._config.stride :], self._first + self._config.stride
        self._held = held

    def rest(self) -> Iterator[tuple[int, Latents, Latents]]:
        """Yield the last window, when no more latents will come."""
        held, self._held = self._held, None
        # If at most `overlap_frames` frames are held, the previous window already contains all of them.
        if held is not None and len(held) and (self._first == 0 or len(held) > self._config.overlap_frames):
            assert self._origin is not None
            yield self._first, held, self._origin


def windows_of(
    pieces: Iterable[Latents],
    config: RenderConfig,
    join: Callable[[list[Latents]], Latents],
    *,
    lead_frames: int = 0,
) -> Iterator[tuple[int, Latents, Latents]]:
    """Yield the windows of latents that are given in pieces [n, D]. See `Cutter`."""
    cutter = Cutter(config, join, lead_frames=lead_frames)
    for piece in pieces:
        yield from cutter.add(piece)
    yield from cutter.rest()


class Blend:
    """Join rendered windows, in order, to a video. Frames that two windows share fade from the first to the second."""

    def __init__(self, config: RenderConfig):
        self._overlap = config.overlap_frames
        # The last frames of the previous window. The next window, if there is one, shares them.
        self._held: np.ndarray | None = None

    def add(self, window: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames that are finished when the next window, uint8 [W, S, S, 3], has arrived."""
        if self._held is not None:
            share = min(len(self._held), len(window))
            fade = (np.arange(1, share + 1) / (share + 1)).reshape(-1, 1, 1, 1)
            mixed = self._held[:share] * (1 - fade) + window[:share] * fade
            window = np.concatenate([np.rint(mixed).astype(np.uint8), window[share:]])
        done = max(len(window) - self._overlap, 0)
        self._held = window[done:]
        yield from window[:done]

    def rest(self) -> Iterator[np.ndarray]:
        """Yield the remaining frames. Call this after the last window."""
        if self._held is not None:
            yield from self._held
        self._held = None
