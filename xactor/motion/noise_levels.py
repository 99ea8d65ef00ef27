"""Names and bounds of noise levels. Imports no torch: command lines and services read this module."""

from typing import Literal

MAX_LEVEL = 1000
"""Noise levels k run from 0 (clean) to MAX_LEVEL (pure noise)."""

History = Literal["linear", "vanilla", "fractional"]
"""Schedules of the history's noise levels: see `history_levels`."""

HISTORIES: tuple[History, ...] = ("linear", "vanilla", "fractional")
