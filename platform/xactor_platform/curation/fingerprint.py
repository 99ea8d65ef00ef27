"""Compute the fingerprints of a clip's sound and pictures, by which copies are found, and compare them.

A copy is the same recording, encoded again, resized or trimmed. The fingerprint of the sound is that of Haitsma and
Kalker 2002, A highly robust audio fingerprinting system: one word a frame, whose bits tell in which bands the energy
rises against that of the next band. Ours: the sound's level must agree too, because the words do not hold it.
"""

import cv2
import numpy as np

from xactor.rates import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from xactor_platform.curation.messages import Prints

PICTURE_EVERY_FRAMES = 5
"""Distance in frames between two pictures of a fingerprint."""

# Length of the windows whose spectra are compared, and distance between two compared windows. Ours: both are longer
# than in the paper, because our words are 40 ms apart, and a copy may be trimmed between two frames.
_WINDOW, _LAG = 10 * SAMPLES_PER_FRAME, 4 * SAMPLES_PER_FRAME
# Borders of the bands in Hz. The paper's range, in 33 bands.
_BORDERS_HZ = np.geomspace(300, 3000, 34)
# A frame counts as quiet if it is this much quieter than the loudest one, in dB.
_QUIET_DB = -40.0
# Length of the windows whose level is measured, and steps of the level per dB.
_LEVEL_WINDOW, _STEPS_PER_DB = 3 * SAMPLES_PER_FRAME, 6
# Side of the picture that is transformed, and of the block of its lowest frequencies that is kept, in pixels.
_PICTURE_PX, _KEPT = 32, 8
# Two prints agree if at most this fraction of the bits of the sound differs, if the levels correlate at least so well,
# and if at most this many of a picture's 64 bits differ (the median over the pictures). On 10 real talking clips:
# copies at crf 34, of 320 px, trimmed, and half a frame apart have up to 0.13, down to 0.83 and up to 8; other
# sentences have at least 0.33, and other people at least 23.
_MAX_SOUND, _MIN_CORRELATION, _MAX_PICTURE = 0.25, 0.75, 12
# Smallest number of frames of a shared part, and of those of its frames that are not quiet.
_MIN_SHARED, _MIN_LOUD = 25, 15


def sound_words(samples: np.ndarray) -> np.ndarray:
    """Return a word for each frame of a sound, uint32 [T]. The word of a quiet frame is 0.

    Args:
        samples: float32 [T x 640] at 16 kHz.
    """
    frames = len(samples) // SAMPLES_PER_FRAME
    # The first window begins half a window and half a lag before the middle of the first frame.
    before = (_WINDOW + _LAG - SAMPLES_PER_FRAME) // 2
    padded = np.pad(samples[: frames * SAMPLES_PER_FRAME], (before, _WINDOW + _LAG))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::SAMPLES_PER_FRAME]
    lag = _LAG // SAMPLES_PER_FRAME
    spectra = np.fft.rfft(windows[: frames + lag] * np.hanning(_WINDOW).astype(np.float32))
    borders = np.searchsorted(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE_HZ), _BORDERS_HZ)
    power = np.add.reduceat(np.square(np.abs(spectra)), borders, axis=1)[:, :-1]  # [T + lag, 33]
    slopes = power[:, :-1] - power[:, 1:]  # [T + lag, 32]
    bits = slopes[lag:] > slopes[:frames]
    words = np.packbits(bits, axis=1).view(np.uint32)[:, 0]
    level = 10 * np.log10(power.sum(axis=1) + 1e-12)
    # Both windows of a word must hold sound.
    level = np.minimum(level[lag:], level[:frames])
    return np.where(level > level.max(initial=-np.inf) + _QUIET_DB, words, 0).astype(np.uint32)


def sound_levels(samples: np.ndarray) -> np.ndarray:
    """Return the level of each frame of a sound, in sixths of a dB above the level of a quiet frame, uint8 [T].

    Args:
        samples: float32 [T x 640] at 16 kHz.
    """
    frames = len(samples) // SAMPLES_PER_FRAME
    power = np.square(samples[: frames * SAMPLES_PER_FRAME]).reshape(frames, SAMPLES_PER_FRAME).sum(axis=1)
    weights = np.ones(_LEVEL_WINDOW // SAMPLES_PER_FRAME)
    level = 10 * np.log10(np.convolve(power, weights, mode="same") + 1e-12)
    steps = (level - level.max(initial=-np.inf) - _QUIET_DB) * _STEPS_PER_DB
    return np.rint(np.maximum(steps, 0)).astype(np.uint8)


def picture_bits(picture: np.ndarray) -> int:
    """Return 64 bits that tell which of a picture's lowest frequencies are above their median.

    Args:
        picture: uint8 [S, S, 3].
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_PICTURE_PX, _PICTURE_PX), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].ravel()
    # The first number is the brightness.
    low[0] = 0
    return int(np.packbits(low > np.median(low)).view(np.uint64)[0])


def shared_frames(first: Prints, second: Prints, shift: int) -> tuple[int, int] | None:
    """Return the frames (first, end) of the second clip that the first clip also holds. None: it holds none of them.

    Args:
        first: prints of a clip.
        second: prints of another clip.
        shift: frames by which the second clip begins after the first one. It is negative if it begins before.
    """
    begin, end = max(0, -shift), min(len(second.words), len(first.words) - shift)
    if end - begin < _MIN_SHARED:
        return None
    ours, theirs = first.words[begin + shift : end + shift], second.words[begin:end]
    loud = (ours != 0) & (theirs != 0)
    if loud.sum() < _MIN_LOUD or _different_bits(ours[loud], theirs[loud]).mean() > 32 * _MAX_SOUND:
        return None
    levels = np.stack([first.levels[begin + shift : end + shift], second.levels[begin:end]]).astype(float)
    if levels.std(axis=1).min() == 0 or np.corrcoef(levels)[0, 1] < _MIN_CORRELATION:
        return None
    numbers = np.arange(-(-begin // PICTURE_EVERY_FRAMES), -(-end // PICTURE_EVERY_FRAMES))
    nearest = np.rint(numbers + shift / PICTURE_EVERY_FRAMES).astype(int).clip(0, len(first.pictures) - 1)
    if np.median(_different_bits(first.pictures[nearest], second.pictures[numbers])) > _MAX_PICTURE:
        return None
    return begin, end


def _different_bits(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the number of bits in which words [N] differ, [N]."""
    different = np.ascontiguousarray(ours ^ theirs)
    return np.unpackbits(different.view(np.uint8)).reshape(len(different), -1).sum(axis=1)
