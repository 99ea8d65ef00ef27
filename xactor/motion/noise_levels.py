"""Names and bounds of noise levels, without torch."""

from typing import Literal

# Level of pure noise; 0 is clean.
MAX_LEVEL = 1000

History = Literal["linear", "vanilla", "fractional"]
HISTORIES: tuple[History, ...] = ("linear", "vanilla", "fractional")
