"""Plan the noise levels by which a chunk of motion is sampled (Paper 3.3.1)."""

import torch
from torch import Tensor

from xactor.motion.history import history_levels
from xactor.motion.noise_levels import MAX_LEVEL
from xactor.motion.sampling_config import SamplingConfig


def sampling_plan(history: int, chunk: int, capacity: int, config: SamplingConfig) -> Tensor:
    """The noise level of every frame at every step: int64 [rows, history + chunk].

    The history keeps its levels; the chunk goes from pure noise (1000) to clean (0) in `steps` rows after the first.
    Pipelined (`groups` > 1), its frames fall group by group, each `group_delay` rows after the one before, and the
    first need not wait for the last. A delay of `steps` asks for the least sound ahead, a small one for the least
    work. Ours; that every frame has a level of its own in training is what allows it.
    """
    past = history_levels(history, capacity, config.history, history_level=config.history_level)
    group = torch.arange(chunk) * config.groups // chunk  # [chunk], 0..groups - 1
    delay = config.group_delay or -(-config.steps // config.groups)
    row = torch.arange(config.steps + delay * (config.groups - 1) + 1)
    falling = torch.linspace(MAX_LEVEL, 0, config.steps + 1).round().long()
    levels = falling[(row[:, None] - delay * group[None, :]).clamp(0, config.steps)]  # [rows, chunk]
    return torch.cat([past.expand(len(row), -1), levels], dim=1)
