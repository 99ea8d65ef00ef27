"""How a chunk of motion is sampled: the choices, and the plan of noise levels that they give (Paper 3.3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xactor.motion.history import HISTORIES, History, history_levels
from xactor.motion.scheduler import MAX_LEVEL


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """
    steps: DDIM steps of a frame (the paper's 50).
    audio_cfg: guidance scale (the paper's 3); 1 is without guidance.
    history, history_level: see `history_levels`.
    groups, group_delay: pipelined denoising, see `sampling_plan`; the paper's is 1 group. The delay is in steps,
        `steps / groups` unless it is given.
    """

    steps: int = 50
    audio_cfg: float = 3.0
    history: History = "linear"
    history_level: int = 0
    groups: int = 1
    group_delay: int | None = None

    def __post_init__(self):
        if not 1 <= self.steps <= MAX_LEVEL:
            raise ValueError(f"steps must be within 1..{MAX_LEVEL}, got {self.steps}")
        if not 1 <= self.audio_cfg <= 20:
            raise ValueError(f"audio_cfg must be within 1..20, got {self.audio_cfg}")
        if self.history not in HISTORIES:
            raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {self.history!r}")
        if not 1 <= self.groups <= self.steps:
            raise ValueError(f"groups must be within 1..steps, {self.steps}, got {self.groups}")
        if self.group_delay is not None and not 1 <= self.group_delay <= self.steps:
            raise ValueError(f"group_delay must be within 1..steps, {self.steps}, got {self.group_delay}")
        history_levels(0, 1, self.history, history_level=self.history_level)


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
