"""How noisy the model sees its own past: levels for history frames at inference (Paper 3.3.1, Table 2)."""

import torch
from torch import Tensor

from xactor.motion.noise_levels import HISTORIES, MAX_LEVEL, History

STAIRS = 4


def history_levels(frames: int, capacity: int, history: History, *, history_level: int = 0) -> Tensor:
    """Noise levels of the last `frames` generated frames, oldest first: int64 [frames].

    `linear` is the paper's: from pure noise (1000) at the far end of the context down to 0 beside the current chunk.
    `vanilla` is one level for all, `history_level` (0 = clean); `fractional` a staircase of four steps (Song et al.
    2025). Ours: a frame's level depends on its distance, by the context's `capacity` for history, also while
    the history is still shorter than that.
    """
    if not 0 <= frames <= capacity:
        raise ValueError(f"history must be within 0..{capacity} frames, got {frames}")
    if not 0 <= history_level <= MAX_LEVEL:
        raise ValueError(f"history_level must be within 0..{MAX_LEVEL}, got {history_level}")
    distance = torch.arange(frames, 0, -1)  # [frames]; 1 is the frame just before the chunk
    if history == "vanilla":
        return torch.full_like(distance, history_level)
    if history == "linear":
        return ((distance - 1) * MAX_LEVEL / max(capacity - 1, 1)).round().long()
    if history == "fractional":
        stair = (distance - 1) * STAIRS // capacity  # 0..3, the near quarter clean
        return stair * MAX_LEVEL // (STAIRS - 1)
    raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {history!r}")
