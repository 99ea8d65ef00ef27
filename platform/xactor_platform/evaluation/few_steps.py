"""Compare fewer sampling steps, and pipelined denoising, with the default of 50 steps.

Pipelined denoising divides a chunk, the frames that are denoised together, into groups, and starts one group after
another. Every way of sampling gets the same clips and seeds, so that its motion can be compared with the motion that
the default gives.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from xactor.motion import SamplingConfig, sample_motion
from xactor.rates import FPS
from xactor_platform.evaluation.motion_report import correlation, held_out_clips, load_fitting
from xactor_platform.training.run.folder import EXPORT

# Default number of DDIM steps.
DEFAULT = SamplingConfig().steps
# Pairs of a number of steps and a number of groups. See `Way`.
WAYS = ((DEFAULT, 1), (20, 1), (10, 1), (20, 4), (10, 4))


@dataclass(frozen=True, kw_only=True)
class Way:
    """Hold the figures of one way of sampling, over all clips."""

    steps: int
    """DDIM steps of a chunk."""
    groups: int
    """Number of groups of a chunk's frames. Denoising starts one group after another; 1 is without pipelining."""
    lips: float
    """Correlation of the sampled lip opening with the true one."""
    rms: float
    """Standard deviation of the latents, divided by that of the true latents."""
    apart: float
    """RMS distance of the latents from those of the first way, in standard deviations of the true latents."""
    real_time: float
    """Seconds of computation for each second of motion."""


def compare_steps(
    run: str,
    shards: str,
    output: Path,
    *,
    ways: Sequence[tuple[int, int]] = WAYS,
    config: SamplingConfig | None = None,
    seed: int = 0,
    max_clips: int = 8,
) -> list[Way]:
    """Sample the run's exported model in each way, and return the ways' figures. Write few_steps.json to `output`.

    Args:
        run: Local folder of the run.
        shards: URI of the shards. Those named `test-*` and `val-*` are used.
        output: Folder for the report.
        ways: Pairs of steps and groups. All ways are compared with the first.
        config: Options of the sampling, except the steps and groups, which each way sets. None means the defaults.
        seed: Seed of the sampling.
        max_clips: Maximum number of held-out clips. The longest are used.

    Raises:
        ValueError: There are no held-out clips, or the lip opening of the latents is not known.
    """
    clips, lips = held_out_clips(shards, max_clips=max_clips)
    true_latents = np.concatenate([clip.motion for clip in clips])
    true_lips = np.concatenate([clip.lips for clip in clips])
    deviation = true_latents.std(0)
    # A dimension that never changes has a deviation of 0, by which no distance can be divided.
    moves = deviation > 0
    model = load_fitting(Path(run) / EXPORT, shards)
    found: list[Way] = []
    # Latents that the first way sampled. Those of all ways are compared with them.
    first: np.ndarray | None = None
    # The first call of a process is slow, so warm up before the ways are timed.
    sample_motion(model, clips[0].audio[None, :FPS], seeds=[seed], config=SamplingConfig(steps=1))
    for steps, groups in ways:
        way = replace(config or SamplingConfig(), steps=steps, groups=groups)
        begun = time.perf_counter()
        made = np.concatenate(
            [sample_motion(model, clip.audio[None], seeds=[seed], config=way)[0].numpy() for clip in clips]
        )
        seconds = time.perf_counter() - begun
        if first is None:
            first = made
        apart = ((made - first) / np.where(moves, deviation, 1))[:, moves]
        found.append(
            Way(
                steps=steps,
                groups=groups,
                lips=correlation(lips(made), true_lips),
                rms=float(made.std(0)[moves].mean() / deviation[moves].mean()),
                apart=float(np.sqrt(np.square(apart).mean())),
                real_time=seconds / (len(made) / FPS),
            )
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "few_steps.json").write_text(json.dumps([asdict(way) for way in found], indent=2) + "\n")
    return found


def table(ways: Sequence[Way]) -> str:
    """Return a table for the terminal."""
    lines = [f"  {'steps':>5}{'groups':>8}{'lips':>8}{'RMS':>8}{'apart':>8}{'real time':>11}"]
    lines += [
        f"  {way.steps:>5}{way.groups:>8}{way.lips:>8.3f}{way.rms:>8.3f}{way.apart:>8.3f}{way.real_time:>11.3f}"
        for way in ways
    ]
    return "\n".join(["Fewer steps, compared with the first way", *lines])
