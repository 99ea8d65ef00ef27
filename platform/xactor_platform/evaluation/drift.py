"""Measure whether motion that is sampled for a long time drifts: repeat the sound of one held-out clip in rounds.

All rounds are one continuous rollout of the motion model. Every round hears the same sound, so the lips and the
statistics of the latents can be compared between rounds.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from xactor.motion import SamplingConfig, stream_motion
from xactor.rates import FPS
from xactor_platform.evaluation.motion_report import correlation, held_out_clips, load_fitting
from xactor_platform.training.run.folder import EXPORT


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Hold the figures of all rounds."""

    clip_s: float
    """Length of a round, in seconds."""
    steps: int
    """DDIM steps of a chunk, the frames that are denoised together."""
    lips: list[float]
    """Correlation of the sampled lip opening with the true one, by round."""
    off: list[float]
    """Distance of the mean latent from the true mean, in standard deviations of the true latents (RMS over dimensions),
    by round."""
    rms: list[float]
    """Standard deviation of the latents, divided by that of the true latents, by round."""

    @property
    def seconds(self) -> float:
        """Return the length of all rounds together."""
        return self.clip_s * len(self.lips)

    def table(self) -> str:
        """Return a table for the terminal."""
        rows = [f"{self.seconds / 60:.1f} minutes, {len(self.lips)} rounds of the same {self.clip_s:.0f} s"]
        rows.append(f"  {'':<22}{'first':>8}{'last':>8}   all")
        for name, values in (
            ("lips' correlation", self.lips),
            ("mean's offset, in SDs", self.off),
            ("SD relative to truth", self.rms),
        ):
            over_rounds = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
            rows.append(f"  {name:<22}{values[0]:>8.3f}{values[-1]:>8.3f}   {over_rounds}")
        return "\n".join(rows)


def measure_drift(
    run: str,
    shards: str,
    output: Path,
    *,
    minutes: float,
    config: SamplingConfig | None = None,
    seed: int = 0,
) -> Drift:
    """Measure a rollout over whole rounds of the longest held-out clip. Write drift.json and drift.png to `output`.

    Args:
        run: Local folder of the run.
        shards: URI of the shards. Those named `test-*` and `val-*` are used.
        output: Folder for the report.
        minutes: Minimum length of the rollout, in minutes. It is rounded up to whole rounds.
        config: Options of the sampling. None means the defaults.
        seed: Seed of the sampling.

    Raises:
        ValueError: There are no held-out clips, `minutes` gives fewer than two rounds, or the lip opening of the
            latents is not known.
    """
    config = config or SamplingConfig()
    (clip,), lips = held_out_clips(shards, max_clips=1)
    truth = clip.motion
    rounds = math.ceil(minutes * 60 * FPS / len(truth))
    if rounds < 2:
        round_minutes = len(truth) / FPS / 60
        raise ValueError(f"minutes must be more than {round_minutes:.2f}, one round's, got {minutes:g}")
    model = load_fitting(Path(run) / EXPORT, shards)
    pieces = list(stream_motion(model, (clip.audio for _ in range(rounds)), seed=seed, config=config))
    latents_of_round = np.split(torch.cat(pieces).numpy(), rounds)
    deviation = truth.std(0)
    # A dimension that never changes has a deviation of 0, by which no distance can be divided.
    moves = deviation > 0
    drift = Drift(
        clip_s=len(truth) / FPS,
        steps=config.steps,
        lips=[correlation(lips(z), clip.lips) for z in latents_of_round],
        off=[_rms(((z - truth).mean(0) / deviation)[moves]) for z in latents_of_round],
        rms=[float(z.std(0).mean() / deviation.mean()) for z in latents_of_round],
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "drift.json").write_text(json.dumps(asdict(drift), indent=2) + "\n")
    _plot(drift, output / "drift.png")
    return drift


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _plot(drift: Drift, path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    minutes = (np.arange(len(drift.lips)) + 1) * drift.clip_s / 60
    for values, label in (
        (drift.lips, "lips: correlation with the truth"),
        (drift.rms, "standard deviation of the latents, relative to the truth"),
        (drift.off, "offset of the mean latent from the truth, in standard deviations"),
    ):
        axes.plot(minutes, values, "o-", label=label)
    axes.set(xlabel="minutes", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)
