"""Compare cepstra with their formulas, with python_speech_features, and with cepstra of segments."""

import math

import numpy as np
import pytest
from sounds import sound, voice

from xactor.metrics.mfcc import mfcc, row_count
from xactor.metrics.sync import cepstra_windows


def cepstra_by_definition(pcm: np.ndarray, row: int) -> np.ndarray:
    """Compute one row from the formulas: a window of 25 ms, a Fourier sum, triangular filters and a cosine sum."""
    window = range(160 * row, 160 * row + 400)
    emphasized = [pcm[i] - 0.97 * pcm[i - 1] if i > 0 else pcm[0] for i in window]
    n = np.arange(400)
    power = [abs(np.sum(emphasized * np.exp(-2j * np.pi * k * n / 512))) ** 2 / 512 for k in range(257)]
    mels = [i / 27 * 2595 * math.log10(1 + 8000 / 700) for i in range(28)]
    edges = [math.floor(513 * 700 * (10 ** (mel / 2595) - 1) / 16000) for mel in mels]
    logs = []
    for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        rising = sum(power[k] * (k - low) / (middle - low) for k in range(low, middle))
        falling = sum(power[k] * (high - k) / (high - middle) for k in range(middle, high))
        logs.append(math.log(rising + falling))
    cepstra = []
    for c in range(13):
        total = sum(value * math.cos(math.pi * c * (2 * j + 1) / 52) for j, value in enumerate(logs))
        cepstra.append(total * math.sqrt(2 / 26) * (1 + 11 * math.sin(math.pi * c / 22)))
    cepstra[0] = math.log(sum(power))
    return np.array(cepstra)


def test_cepstra_equal_their_formulas():
    samples = sound(4) + 0.3 * voice(0.16)
    pcm = np.rint(samples * 32768).astype(np.float64)
    made = mfcc(samples)
    assert made.shape == (row_count(len(samples)), 13)
    for row in (0, 7):
        np.testing.assert_allclose(made[row], cepstra_by_definition(pcm, row), atol=1e-4)


@pytest.mark.parametrize("samples", [1, 400, 401, 560, 561, 16_123])
def test_cepstra_equal_those_of_python_speech_features(samples):
    reference = pytest.importorskip("python_speech_features")
    given = sound(26)[:samples].clip(-1, 1)
    given[4000:9000] = 0  # silence, whose energy of zero has no logarithm
    pcm = np.rint(given * 32768).astype(np.int16)
    np.testing.assert_allclose(mfcc(given), reference.mfcc(pcm, 16_000), atol=1e-4)


def test_cepstra_of_segments_equal_those_of_the_whole():
    samples = sound(10)
    whole = mfcc(samples)
    pieces = [mfcc(samples, first, min(7, len(whole) - first)) for first in range(0, len(whole), 7)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    windows = cepstra_windows(samples, 2, 3)
    np.testing.assert_allclose(windows, [whole[4 * i : 4 * i + 20].T for i in (2, 3, 4)], atol=1e-5)


def test_missing_rows_are_refused():
    with pytest.raises(ValueError, match=r"rows must be within 0..3, got 2 to 4"):
        mfcc(np.ones(600, np.float32), 2, 2)
    with pytest.raises(ValueError, match=r"samples must be mono \[N\] with N >= 1, got shape \[0\]"):
        mfcc(np.zeros(0, np.float32))
