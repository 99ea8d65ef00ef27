"""Define the bounds of noise levels and the names of their schedules.

This module imports no torch, because command lines and services read it.
"""

from typing import Literal

MAX_LEVEL = 1000
"""Noise levels k run from 0 (clean) to MAX_LEVEL (pure noise)."""

History = Literal["linear", "vanilla", "fractional"]
"""Schedules of the history's noise levels: see `history_levels`."""

HISTORIES: tuple[History, ...] = ("linear", "vanilla", "fractional")
