"""Make what drawn people and puppets act in tests: a voice, and rows of controls."""

import numpy as np

from xactor.controls import CONTROL_COUNT, INDEX


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Return syllables of a buzzing voice, which sound like speech, float32 [N] at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.3 * time)
    buzz = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16_000) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * time + rng.uniform(0, 6)), 0, 1)
    syllables *= np.sin(2 * np.pi * 0.23 * time) > -0.6
    return (0.08 * buzz * syllables).astype(np.float32)


def controls(**values: float) -> np.ndarray:
    """Return a row of controls, float32 [57], that are 0 except the given ones."""
    row = np.zeros(CONTROL_COUNT, np.float32)
    for name, value in values.items():
        row[INDEX[name]] = value
    return row
