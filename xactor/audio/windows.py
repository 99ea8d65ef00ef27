"""Define the feature windows: the pieces of a recording from each of which an audio encoder computes some features.

The video frames of a recording are divided at fixed positions into runs of `hop_frames`. The features of a run are
computed from one window of audio: the run itself, `left_frames` before it and `right_frames` after it. Each window is
normalised separately, and its features depend on nothing outside it. So audio that arrives in pieces gives the same
features as the whole file, and the cost is linear in the length of the recording.
"""

from dataclasses import dataclass

import numpy as np

from xactor.rates import SAMPLES_PER_FRAME


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Hold the sizes of the feature windows, in video frames of 40 ms, and the limit of their scaling."""

    hop_frames: int = 16
    """Number of frames that one window gives features for, >= 1."""
    left_frames: int = 112
    """Number of frames of audio that the window has before these frames, >= 0."""
    right_frames: int = 2
    """Number of frames of audio that the window has after these frames, >= 0."""
    floor_db: float = -40.0
    """Loudness in dBFS (RMS). A window that is at least this loud is scaled to unit variance. A window that is x dB
    quieter than `floor_db` stays x dB quieter than that, because the noise of a long pause must not become as loud as
    speech. -inf: every window is scaled to unit variance."""

    def __post_init__(self):
        for name, minimum in (("hop_frames", 1), ("left_frames", 0), ("right_frames", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be >= {minimum}, got {getattr(self, name)}")
        if not self.floor_db <= 0:
            raise ValueError(f"floor_db must be <= 0, got {self.floor_db}")

    @property
    def frames(self) -> int:
        """Return the length of one window, in frames."""
        return self.left_frames + self.hop_frames + self.right_frames


def window_count(frames: int, spec: WindowSpec) -> int:
    """Return the number of windows that cover a recording of this many frames."""
    # Divide and round up.
    return -(-frames // spec.hop_frames)


def cut_window(samples: np.ndarray, index: int, spec: WindowSpec, *, start: int = 0) -> np.ndarray:
    """Cut one window out of a recording and normalise it: float32 [spec.frames * SAMPLES_PER_FRAME].

    The window's samples get zero mean and unit variance, as in Wav2Vec2's own preprocessing, which does this for a
    whole recording. A window that is quieter than `spec.floor_db` gets a smaller variance. Where the window extends
    past the start or the end of the recording, it is zero.

    Args:
        samples: float32 [N], mono, 16 kHz.
        index: Number of the window.
        spec: The sizes and the scaling of the windows.
        start: Number of the recording's sample with which `samples` begins. It is above 0 if earlier samples have been
            dropped.
    """
    first = window_start(index, spec)
    size = spec.frames * SAMPLES_PER_FRAME
    window = np.zeros(size, dtype=np.float32)
    assert max(first, 0) >= start
    inside = samples[max(first, 0) - start : max(first + size - start, 0)]
    if inside.size:
        sound = inside.astype(np.float64)
        variance = max(sound.var(), 10 ** (spec.floor_db / 10))
        sound = (sound - sound.mean()) / np.sqrt(variance + 1e-7)
        offset = max(-first, 0)
        window[offset : offset + sound.size] = sound
    return window


def window_start(index: int, spec: WindowSpec) -> int:
    """Return the number of the first sample that a window reads, < 0 for a window that begins before the recording."""
    return (index * spec.hop_frames - spec.left_frames) * SAMPLES_PER_FRAME


def sound_needed(first_frame: int, last_frame: int, spec: WindowSpec) -> tuple[int, int]:
    """Return the range of samples that the features of the frames [first_frame, last_frame) depend on.

    Returns:
        Number of the first sample, and of the sample after the last one. The latter may lie past the recording's end.
    """
    first = window_start(first_frame // spec.hop_frames, spec)
    last = window_start(window_count(last_frame, spec) - 1, spec) + spec.frames * SAMPLES_PER_FRAME
    return max(first, 0), last
