"""Audio features by fixed windows: what makes a streamed feature equal to the whole file's.

The frames of a recording are cut at absolute positions into runs of `hop_frames`. The features of a run come
from one window of sound around it: `left_frames` before it, `right_frames` after it. The window is normalised
by itself. Nothing else is looked at, so a feature depends on sound at most `left_frames` back, whoever computes it and
in whatever pieces the sound arrives; and an hour costs sixty times a minute.
"""

from dataclasses import dataclass

import numpy as np

from xactor.rates import SAMPLES_PER_FRAME


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Where windows stand. All in video frames of 40 ms."""

    hop_frames: int = 16
    left_frames: int = 112
    right_frames: int = 2

    def __post_init__(self):
        for name, low in (("hop_frames", 1), ("left_frames", 0), ("right_frames", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")

    @property
    def frames(self) -> int:
        """The length of one window."""
        return self.left_frames + self.hop_frames + self.right_frames


def window_count(frames: int, spec: WindowSpec) -> int:
    """How many windows cover so many frames."""
    return -(-frames // spec.hop_frames)


def cut_window(samples: np.ndarray, index: int, spec: WindowSpec, *, start: int = 0) -> np.ndarray:
    """Window `index` of a recording, normalised: float32 [spec.frames * 640].

    Zero mean and unit variance over the sound that exists (Wav2Vec2's own preprocessing, here per window); what
    lies before the start or past the end is zero.

    Args:
        samples: float32 [N], mono, 16 kHz.
        start: where in the recording they begin, if what was before them is no longer needed.
    """
    first = window_start(index, spec)
    size = spec.frames * SAMPLES_PER_FRAME
    window = np.zeros(size, dtype=np.float32)
    assert max(first, 0) >= start
    inside = samples[max(first, 0) - start : max(first + size - start, 0)]
    if inside.size:
        sound = inside.astype(np.float64)
        sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        at = max(-first, 0)
        window[at : at + sound.size] = sound
    return window


def window_start(index: int, spec: WindowSpec) -> int:
    """The first sample that window `index` looks at; below 0 at a recording's beginning."""
    return (index * spec.hop_frames - spec.left_frames) * SAMPLES_PER_FRAME


def sound_needed(first_frame: int, last_frame: int, spec: WindowSpec) -> tuple[int, int]:
    """The samples [first, last) that the features of frames [first_frame, last_frame) look at."""
    first = window_start(first_frame // spec.hop_frames, spec)
    last = window_start(window_count(last_frame, spec) - 1, spec) + spec.frames * SAMPLES_PER_FRAME
    return max(first, 0), last
