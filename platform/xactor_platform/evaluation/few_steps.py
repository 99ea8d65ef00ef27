"""What fewer steps and pipelined denoising cost: each way of sampling beside the default's 50 steps.

Every way has the same clips and seeds, so that what it makes can be held against what the default makes of them.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from xactor.motion import MotionTransformer, SamplingConfig, sample_motion
from xactor.rates import FPS
from xactor_platform.evaluation.motion_report import correlation, held_out_clips
from xactor_platform.training.run.folder import EXPORT

DEFAULT = SamplingConfig().steps
WAYS = ((DEFAULT, 1), (20, 1), (10, 1), (20, 4), (10, 4))  # steps, groups


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of sampling, over all clips.

    Attributes:
        lips: correlation with the true lip opening. rms: the latents' deviation over the truth's.
        apart: how far its latents are from those of the default, RMS in the truth's deviations.
        real_time: seconds that a second of motion takes.
    """

    steps: int
    groups: int
    lips: float
    rms: float
    apart: float
    real_time: float


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
    """Samples the run's exported model every way; writes few_steps.json to `output`.

    Args:
        run: a run's folder, local. shards: URI; their `test-` and `val-` ones are used.
        ways: steps and groups; what the first makes, the others are held against.
        config: all else than steps and groups.

    Raises:
        ValueError: no held-out clips, or latents off which nothing can be read.
    """
    clips, lips = held_out_clips(shards, most=max_clips)
    truth = np.concatenate([clip.motion for clip in clips])
    true = np.concatenate([clip.lips for clip in clips])
    deviation = truth.std(0)
    moves = deviation > 0
    model = MotionTransformer.from_pretrained(Path(run) / EXPORT / "motion").eval()
    found: list[Way] = []
    default: np.ndarray | None = None
    sample_motion(model, clips[0].audio[None, :FPS], seeds=[seed], config=SamplingConfig(steps=1))  # warm
    for steps, groups in ways:
        way = replace(config or SamplingConfig(), steps=steps, groups=groups)
        begun = time.perf_counter()
        made = np.concatenate(
            [sample_motion(model, clip.audio[None], seeds=[seed], config=way)[0].numpy() for clip in clips]
        )
        seconds = time.perf_counter() - begun
        default = made if default is None else default
        apart = ((made - default) / np.where(moves, deviation, 1))[:, moves]
        found.append(
            Way(
                steps=steps,
                groups=groups,
                lips=correlation(lips(made), true),
                rms=float(made.std(0)[moves].mean() / deviation[moves].mean()),
                apart=float(np.sqrt(np.square(apart).mean())),
                real_time=seconds / (len(made) / FPS),
            )
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "few_steps.json").write_text(json.dumps([asdict(way) for way in found], indent=2) + "\n")
    return found


def table(ways: Sequence[Way]) -> str:
    """For people."""
    lines = [f"  {'steps':>5}{'groups':>8}{'lips':>8}{'RMS':>8}{'apart':>8}{'real time':>11}"]
    lines += [
        f"  {way.steps:>5}{way.groups:>8}{way.lips:>8.3f}{way.rms:>8.3f}{way.apart:>8.3f}{way.real_time:>11.3f}"
        for way in ways
    ]
    return "\n".join(["Fewer steps, beside the first", *lines])
