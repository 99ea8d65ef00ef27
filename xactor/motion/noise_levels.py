"""Define the bounds of noise levels and the names of the noise schedules of the history.

The history is the frames before those that are being generated. The model sees it with noise.

This module imports no torch, because command lines and services read it.
"""

from typing import Literal

MAX_LEVEL = 1000
"""Noise levels k run from 0 (clean) to MAX_LEVEL (pure noise)."""

History = Literal["linear", "vanilla", "fractional"]
"""Schedules of the history's noise levels: see `xactor.motion.sampling_plan.history_levels`."""

HISTORIES: tuple[History, ...] = ("linear", "vanilla", "fractional")
