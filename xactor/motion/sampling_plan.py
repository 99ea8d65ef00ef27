"""Compute noise levels for inference (Paper 3.3.1, Table 2).

A chunk is a number of frames that are denoised together. Its history is the frames before it that the model sees. The
history has one level per frame, and the chunk has one level per frame and sampling step.
"""

import torch
from torch import Tensor

from xactor.motion.noise_levels import HISTORIES, MAX_LEVEL, History
from xactor.motion.sampling_config import SamplingConfig

# Number of noise levels of the schedule `fractional`.
_STAIRCASE_STEPS = 4


def history_levels(frames: int, capacity: int, history: History, *, history_level: int = 0) -> Tensor:
    """Return the noise levels at which the model sees the history, oldest frame first: int64 [frames].

    `linear` is the paper's schedule: pure noise (1000) at the far end of the context, falling to 0 next to the
    chunk. `vanilla` is one level for all frames. `fractional` is a staircase of four levels (Song et al. 2025).

    Ours: the level depends on a frame's distance from the chunk relative to `capacity`, even while the history is
    shorter than `capacity`.

    Args:
        frames: Length of the history in frames, 0..capacity.
        capacity: Maximum length of the history in the context, in frames.
        history: The schedule.
        history_level: The level of `vanilla`, 0..1000; 0 is clean.
    """
    if not 0 <= frames <= capacity:
        raise ValueError(f"history must be within 0..{capacity} frames, got {frames}")
    if not 0 <= history_level <= MAX_LEVEL:
        raise ValueError(f"history_level must be within 0..{MAX_LEVEL}, got {history_level}")
    # The frame just before the chunk has distance 1.
    distance = torch.arange(frames, 0, -1)  # [frames]
    if history == "vanilla":
        return torch.full_like(distance, history_level)
    if history == "linear":
        return ((distance - 1) * MAX_LEVEL / max(capacity - 1, 1)).round().long()
    if history == "fractional":
        # Stair of each frame, 0..3. The quarter that is nearest to the chunk has stair 0 and is clean.
        stair = (distance - 1) * _STAIRCASE_STEPS // capacity
        return stair * MAX_LEVEL // (_STAIRCASE_STEPS - 1)
    raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {history!r}")


def sampling_plan(history: int, chunk: int, capacity: int, config: SamplingConfig) -> Tensor:
    """Return the noise level of every frame before every DDIM step and after the last: int64 [rows, history + chunk].

    A DDIM step takes the frames from the levels in one row to those in the next. The history keeps its levels. The
    chunk's levels fall from pure noise (1000) in the first row to clean (0) in `steps` more rows.

    Ours: with `groups` > 1 denoising is pipelined. The chunk's frames are divided into groups. The levels of each group
    begin to fall `group_delay` rows after those of the previous group, so that the first group is clean before the
    last. A delay of `steps` needs the least audio ahead of time; a small delay needs the fewest steps in total. This
    works because training gives every frame its own level.

    Args:
        history: Length of the history in frames.
        chunk: Length of the chunk in frames.
        capacity: Maximum length of the history in the context, in frames.
        config: The sampling options.
    """
    past = history_levels(history, capacity, config.history, history_level=config.history_level)
    # Group of each frame, 0..groups - 1.
    group = torch.arange(chunk) * config.groups // chunk  # [chunk]
    # Divide and round up if no delay is given.
    delay = config.group_delay or -(-config.steps // config.groups)
    row = torch.arange(config.steps + delay * (config.groups - 1) + 1)
    falling = torch.linspace(MAX_LEVEL, 0, config.steps + 1).round().long()
    levels = falling[(row[:, None] - delay * group[None, :]).clamp(0, config.steps)]  # [rows, chunk]
    return torch.cat([past.expand(len(row), -1), levels], dim=1)
