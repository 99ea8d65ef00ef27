"""Mel cepstra as SyncNet hears them: those of `python_speech_features` 0.6 with its defaults, piece by piece.

Written anew because that package wants a whole recording at once: an hour of sound takes it gigabytes. The numbers are
the same, and the tests compare them.
"""

from functools import lru_cache

import numpy as np

from xactor.rates import SAMPLE_RATE_HZ

COEFFICIENTS = 13
STEP = SAMPLE_RATE_HZ // 100  # 10 ms
ROWS_PER_FRAME = 4  # of video, at 25 fps
_WINDOW = 400  # 25 ms, not tapered
_FFT = 512
_FILTERS = 26
_EMPHASIS = 0.97
_LIFTER = 22
_EPSILON = np.finfo(np.float64).eps  # stands for nothing at all, before a logarithm


def row_count(samples: int) -> int:
    """How many rows so many samples have; the last one may reach past the end, where the sound is zero."""
    return 1 + max(-(-(samples - _WINDOW) // STEP), 0)


def mfcc(samples: np.ndarray, first: int = 0, count: int | None = None) -> np.ndarray:
    """Rows `first` to `first + count` of a recording's cepstra, or all: float32 [count, 13], 100 a second.

    Coefficient 0 is the logarithm of the window's energy. A row depends on its own 25 ms and the sample before.

    Args:
        samples: float32 [N], mono, 16 kHz, in [-1, 1]. They are rounded to 16 bits: the reference reads such files.

    Raises:
        ValueError: no samples, more than one dimension, or rows that are not there.
    """
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples must be mono [N] with N >= 1, got shape {list(samples.shape)}")
    rows = row_count(len(samples))
    last = rows if count is None else first + count
    if not 0 <= first < last <= rows:
        raise ValueError(f"rows must be within 0..{rows}, got {first} to {last}")
    start, stop = first * STEP, (last - 1) * STEP + _WINDOW
    before = min(start, 1)
    heard = samples[start - before : stop].astype(np.float64)
    pcm = np.rint(np.clip(heard * 32768, -32768, 32767))
    sharp = pcm.copy()
    sharp[1:] -= _EMPHASIS * pcm[:-1]
    sound = np.zeros(stop - start)
    sound[: len(sharp) - before] = sharp[before:]
    windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::STEP]  # [count, 400]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT  # [count, 257]
    bank, cosines = _tables()
    cepstra = np.log(_positive(power @ bank)) @ cosines  # [count, 13]
    cepstra[:, 0] = np.log(_positive(power.sum(axis=1)))
    return cepstra.astype(np.float32)


def _positive(energy: np.ndarray) -> np.ndarray:
    return np.where(energy == 0, _EPSILON, energy)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Triangular mel filters [257, 26], and the orthonormal cosines with the lifter on them [26, 13]."""
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top_mel, _FILTERS + 2) / 2595) - 1)
    edges = np.floor((_FFT + 1) * edges_hz / SAMPLE_RATE_HZ)  # in bins, whole ones
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(_FFT // 2 + 1)[:, None]
    # Where two edges fall on the same bin, that side of the triangle has no bins, and what is divided is not taken.
    with np.errstate(divide="ignore", invalid="ignore"):
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    inside_left, inside_right = (bins >= low) & (bins < middle), (bins >= middle) & (bins < high)
    bank = np.where(inside_left, rising, 0) + np.where(inside_right, falling, 0)
    n, k = np.arange(_FILTERS)[:, None], np.arange(COEFFICIENTS)
    cosines = np.cos(np.pi * k * (2 * n + 1) / (2 * _FILTERS)) * np.sqrt(2 / _FILTERS)
    cosines[:, 0] /= np.sqrt(2)
    return bank, cosines * (1 + _LIFTER / 2 * np.sin(np.pi * k / _LIFTER))
