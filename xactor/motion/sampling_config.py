"""Define the options of motion sampling.

This module imports no torch, because command lines and services read it.
"""

from dataclasses import dataclass

from xactor.motion.noise_levels import HISTORIES, MAX_LEVEL, History


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Configure how motion is sampled, chunk by chunk. The frames of a chunk are denoised together."""

    steps: int = 50
    """DDIM steps per frame, 1..1000. The paper uses 50."""
    audio_cfg: float = 3.0
    """Scale of classifier-free guidance by the audio, 1..20. The paper uses 3. At 1 there is no guidance, and the
    unconditional branch is not computed."""
    cfg_rescale: float = 0.0
    """Strength, 0..1, with which the size of the guided motion is reset to its size without guidance, after Lin et al.
    2024 ("Common Diffusion Noise Schedules and Sample Steps are Flawed"). At 0, as in the paper, motion becomes larger
    with the guidance and in the course of a long video."""
    chunk_frames: int | None = None
    """Number of frames that are denoised together: one of the model's chunk_lengths. None: the model's chunk_frames.
    Shorter chunks need less audio ahead of time."""
    history: History = "linear"
    """Noise schedule of the history, the frames before a chunk. `linear`, the paper's, falls from pure noise at the far
    end of the context to clean next to the chunk. `vanilla` is history_level for all frames. `fractional` is a
    staircase of four levels."""
    history_level: int = 0
    """Noise level of all history frames with `history="vanilla"`, 0..1000. 0 is clean."""
    groups: int = 1
    """Number of groups into which a chunk's frames are divided, 1..steps. With more than 1, denoising is pipelined: the
    groups start one after the other; see `sampling_plan`. The paper uses 1."""
    group_delay: int | None = None
    """DDIM steps from the start of one group to the start of the next, 1..steps. None means steps / groups, rounded
    up."""

    def __post_init__(self):
        if not 1 <= self.steps <= MAX_LEVEL:
            raise ValueError(f"steps must be within 1..{MAX_LEVEL}, got {self.steps}")
        if not 1 <= self.audio_cfg <= 20:
            raise ValueError(f"audio_cfg must be within 1..20, got {self.audio_cfg}")
        if not 0 <= self.cfg_rescale <= 1:
            raise ValueError(f"cfg_rescale must be within 0..1, got {self.cfg_rescale}")
        if self.chunk_frames is not None and self.chunk_frames < 1:
            raise ValueError(f"chunk_frames must be >= 1, got {self.chunk_frames}")
        if self.history not in HISTORIES:
            raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {self.history!r}")
        if not 0 <= self.history_level <= MAX_LEVEL:
            raise ValueError(f"history_level must be within 0..{MAX_LEVEL}, got {self.history_level}")
        if not 1 <= self.groups <= self.steps:
            raise ValueError(f"groups must be within 1..{self.steps} (steps), got {self.groups}")
        if self.group_delay is not None and not 1 <= self.group_delay <= self.steps:
            raise ValueError(f"group_delay must be within 1..{self.steps} (steps), got {self.group_delay}")
