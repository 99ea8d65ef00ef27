"""Compute the mel-frequency cepstral coefficients (MFCC) that SyncNet reads, one row of 13 numbers per 10 ms of sound.

The numbers equal those of the package `python_speech_features` 0.6 with its default options; the tests compare them.
That package needs the whole recording at once, which takes gigabytes for an hour of sound. This module computes any
range of rows from only the samples that those rows need.
"""

from functools import lru_cache

import numpy as np

from xactor.rates import SAMPLE_RATE_HZ

COEFFICIENTS = 13
# Samples between rows: 10 ms.
STEP = SAMPLE_RATE_HZ // 100
# Rows per video frame at 25 fps.
ROWS_PER_FRAME = 4
# Samples of an analysis window: 25 ms, without a window function that tapers its ends.
_WINDOW = 400
# Length of the Fourier transform of a window, which is filled up with zeros.
_FFT = 512
# Number of triangular mel filters.
_FILTERS = 26
# Pre-emphasis subtracts this share of the previous sample from each sample.
_EMPHASIS = 0.97
# Strength of the lifter, which scales up the higher coefficients.
_LIFTER = 22
# Energy that replaces zero before a logarithm.
_EPSILON = np.finfo(np.float64).eps


def row_count(samples: int) -> int:
    """Return the number of rows of a recording, given its length in samples.

    The window of the last row may extend past the recording's end. Missing samples are zeros.
    """
    return 1 + max(-(-(samples - _WINDOW) // STEP), 0)


def mfcc(samples: np.ndarray, first: int = 0, count: int | None = None) -> np.ndarray:
    """Compute rows of the coefficients of a recording: float32 [count, 13], 100 rows per second.

    Coefficient 0 is the logarithm of the window's energy. A row depends on its own 25 ms and the sample before them.

    Args:
        samples: Float32 [N], mono, 16 kHz, in [-1, 1]. They are rounded to 16 bits, because the reference reads files
            of 16 bits.
        first: Number of the first row.
        count: Number of rows; None means all.

    Raises:
        ValueError: There are no samples, they have more than one dimension, or the rows do not exist.
    """
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples must be mono [N] with N >= 1, got shape {list(samples.shape)}")
    rows = row_count(len(samples))
    last = rows if count is None else first + count
    if not 0 <= first < last <= rows:
        raise ValueError(f"rows must be within 0..{rows}, got {first} to {last}")
    start, stop = first * STEP, (last - 1) * STEP + _WINDOW
    # Pre-emphasis also needs the sample before the first row, if there is one.
    before = min(start, 1)
    needed = samples[start - before : stop].astype(np.float64)
    pcm = np.rint(np.clip(needed * 32768, -32768, 32767))
    emphasized = pcm.copy()
    emphasized[1:] -= _EMPHASIS * pcm[:-1]
    # Samples past the recording's end are zeros.
    sound = np.zeros(stop - start)
    sound[: len(emphasized) - before] = emphasized[before:]
    windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::STEP]  # [count, 400]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT  # [count, 257]
    bank, cosines = _tables()
    cepstra = np.log(_positive(power @ bank)) @ cosines  # [count, 13]
    cepstra[:, 0] = np.log(_positive(power.sum(axis=1)))
    return cepstra.astype(np.float32)


def _positive(energy: np.ndarray) -> np.ndarray:
    """Return the energies with a tiny number in place of zeros, so that their logarithms are finite."""
    return np.where(energy == 0, _EPSILON, energy)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return the triangular mel filters [257, 26], and the orthonormal cosine transform times the lifter [26, 13]."""
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top_mel, _FILTERS + 2) / 2595) - 1)
    # Convert the filters' edges to whole bins of the Fourier transform.
    edges = np.floor((_FFT + 1) * edges_hz / SAMPLE_RATE_HZ)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(_FFT // 2 + 1)[:, None]
    # If two edges fall on the same bin, that side of the triangle has no bins, and the division by zero is not used.
    with np.errstate(divide="ignore", invalid="ignore"):
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    inside_left, inside_right = (bins >= low) & (bins < middle), (bins >= middle) & (bins < high)
    bank = np.where(inside_left, rising, 0) + np.where(inside_right, falling, 0)
    n, k = np.arange(_FILTERS)[:, None], np.arange(COEFFICIENTS)
    cosines = np.cos(np.pi * k * (2 * n + 1) / (2 * _FILTERS)) * np.sqrt(2 / _FILTERS)
    cosines[:, 0] /= np.sqrt(2)
    return bank, cosines * (1 + _LIFTER / 2 * np.sin(np.pi * k / _LIFTER))
