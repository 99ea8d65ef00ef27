"""Score the variants of the paper's Table 2 on shards with a known lip opening, all with the same seeds.

The table compares ways to train and to sample a motion model. The paper scores rendered videos by SyncNet's confidence
(SynC) and distance (SynD). This module scores the motion latents themselves, which needs no renderer and no published
weights. It measures the correlation of the sampled lip opening with the true one (higher is better, as for SynC), and
the error of the lip opening relative to the true one's standard deviation (lower is better, as for SynD).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xactor.motion import MotionEngine, MotionTransformer, SamplingConfig
from xactor_platform.evaluation.motion_report import correlation, held_out_clips, load_fitting
from xactor_platform.training.run.folder import EXPORT

# Clips are scored in this many equal parts too, which shows whether the quality falls over time.
QUARTERS = 4
# Name of the variant that the others are compared with.
FULL = "full model"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Describe one row of Table 2."""

    name: str
    """Name of the row."""
    paper: tuple[float, float]
    """SynC and SynD in the paper's table."""
    train: tuple[str, ...] = ()
    """Command-line options of the training. Variants with the same options share a model."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Values of `SamplingConfig` that differ from the defaults, by field."""


VARIANTS = (
    Variant(name="fully causal attention", paper=(4.04, 9.39), train=("--model.attention", "causal")),
    # This model never saw a noised history in training, so it is sampled with a clean history.
    Variant(
        name="teacher forcing",
        paper=(5.79, 7.67),
        train=("--forcing.forcing", "teacher"),
        sampling={"history": "vanilla"},
    ),
    Variant(name="per-chunk noise", paper=(6.30, 7.51), train=("--forcing.noise", "per_chunk")),
    Variant(name="without CFG", paper=(3.72, 9.65), sampling={"audio_cfg": 1.0}),
    Variant(name="vanilla history", paper=(1.65, 11.34), sampling={"history": "vanilla"}),
    Variant(name="fractional history", paper=(2.60, 11.19), sampling={"history": "fractional"}),
    Variant(name=FULL, paper=(6.62, 7.18)),
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Hold the scores of one variant and seed over all held-out frames."""

    lips: float
    """Correlation of the sampled lip opening with the true one."""
    error: float
    """RMS error of the lip opening, divided by the standard deviation of the true one."""
    quarters: tuple[float, ...]
    """Correlation of the lip opening in each quarter of the clips."""
    rms: float
    """Standard deviation of the latents in the last quarter, divided by that of the true latents."""


def training_name(variant: Variant, seed: int) -> str:
    """Return the name of the run that trains a variant, such as `full-0` or `attention-causal-0`."""
    setting = "-".join(part.split(".")[-1].lstrip("-") for part in variant.train) or "full"
    return f"{setting}-{seed}"


def trainings(seeds: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """Return the options of every run that the table needs, by the run's name."""
    return {
        training_name(variant, seed): (*variant.train, "--train.seed", str(seed))
        for seed in seeds
        for variant in VARIANTS
    }


def score_variants(
    runs: Path,
    shards: str,
    *,
    seeds: tuple[int, ...],
    steps: int,
    max_clips: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Score]], dict[str, np.ndarray]]:
    """Sample and score every variant on the longest held-out clips.

    Args:
        runs: Folder of the finished trainings.
        shards: URI of the shards.
        seeds: Each variant is scored once with each of these seeds. A training with the seed must exist in `runs`.
        steps: DDIM steps of a chunk, the frames that are denoised together.
        max_clips: Maximum number of clips.
        progress: Called with a line after each variant and seed.

    Returns:
        The scores by variant, one for each seed. And latents [T, D] of the longest clip, for a figure: those that each
        variant sampled with the first seed, by variant, and the true latents as `truth`.

    Raises:
        ValueError: There are no held-out clips, or the longest clip is shorter than four contexts. A context is the
            frames that the model sees at once.
    """
    clips, lips = held_out_clips(shards, max_clips=max_clips)
    motion, truth = [clip.motion for clip in clips], [clip.lips for clip in clips]
    scores: dict[str, list[Score]] = {variant.name: [] for variant in VARIANTS}
    shown = {"truth": motion[0]}
    for seed in seeds:
        for variant in VARIANTS:
            model = load_fitting(runs / training_name(variant, seed) / EXPORT, shards)
            if len(motion[0]) < 4 * model.config.context_frames:
                raise ValueError(
                    f"{shards}: the longest held-out clip must have at least four contexts, "
                    f"{4 * model.config.context_frames} frames, got {len(motion[0])}"
                )
            config = replace(SamplingConfig(steps=steps), **variant.sampling)
            sampled = _sample(model, [clip.audio for clip in clips], seed=seed, config=config)
            score = _score(sampled, truth, motion, lips)
            scores[variant.name].append(score)
            shown.setdefault(variant.name, sampled[0])
            progress(f"{variant.name}, seed {seed}: lips {score.lips:.2f}, error {score.error:.2f}")
    return scores, shown


def _sample(
    model: MotionTransformer, audios: list[torch.Tensor], *, seed: int, config: SamplingConfig
) -> list[np.ndarray]:
    """Sample motion for several recordings in one engine.

    Args:
        model: The motion model.
        audios: Audio features [T, L, F] of each recording.
        seed: Seed of the sampling.
        config: Options of the sampling.

    Returns:
        Latents [T, D] of each recording.
    """
    engine = MotionEngine(model, max_streams=len(audios), max_batch=len(audios))
    streams = [engine.open(seed=seed, config=config) for _ in audios]
    pieces_of_stream: list[list[torch.Tensor]] = [[] for _ in audios]
    for stream, audio in zip(streams, audios, strict=True):
        stream.feed(audio)
        stream.end()
    while engine.step():
        for stream, pieces in zip(streams, pieces_of_stream, strict=True):
            pieces.append(stream.take())
            # Count all frames as played, because the engine pauses streams that are far ahead of what is played.
            stream.played = stream.made
    return [torch.cat(pieces).numpy() for pieces in pieces_of_stream]


def _score(sampled: list[np.ndarray], truth: list[np.ndarray], latents: list[np.ndarray], lips) -> Score:
    """Score one variant and seed.

    Args:
        sampled: sampled latents [T, D] of each clip.
        truth: true lip opening [T] of each clip.
        latents: true latents [T, D] of each clip.
        lips: function from latents [T, D] to lip opening [T].
    """
    sampled_lips = [lips(z) for z in sampled]
    all_sampled, all_true = np.concatenate(sampled_lips), np.concatenate(truth)

    def quarter(tracks: list[np.ndarray], number: int) -> np.ndarray:
        """Return one quarter of each track, with this number from 0 or from the end, concatenated."""
        return np.concatenate([np.array_split(track, QUARTERS)[number] for track in tracks])

    return Score(
        lips=correlation(all_sampled, all_true),
        error=float(np.sqrt(np.square(all_sampled - all_true).mean()) / all_true.std()),
        quarters=tuple(correlation(quarter(sampled_lips, n), quarter(truth, n)) for n in range(QUARTERS)),
        rms=float(quarter(sampled, -1).std(0).mean() / quarter(latents, -1).std(0).mean()),
    )


def markdown(scores: dict[str, list[Score]]) -> str:
    """Return a Markdown table of means and standard deviations over the seeds, with the paper's figures.

    The column `behind` is the lip correlation of the full model minus that of the variant. It too is a mean over the
    seeds. All variants use the same seeds, and variants that differ only in the sampling use the same models.
    """

    def spread(values: list[float]) -> str:
        """Return the mean and the standard deviation as text."""
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"

    lines = [
        "| | lips ↑ | behind | error ↓ | first, last quarter | last RMS | paper's SynC ↑ | SynD ↓ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = scores[FULL]
    for variant in VARIANTS:
        rows = scores[variant.name]
        quarters = np.mean([row.quarters for row in rows], axis=0)
        behind = [best.lips - row.lips for best, row in zip(full, rows, strict=True)]
        behind_cell = "-" if variant.name == FULL else spread(behind)
        lines.append(
            f"| {variant.name} | {spread([r.lips for r in rows])} | {behind_cell} "
            f"| {spread([r.error for r in rows])} "
            f"| {quarters[0]:.2f}, {quarters[-1]:.2f} | {np.mean([r.rms for r in rows]):.2f} "
            f"| {variant.paper[0]} | {variant.paper[1]} |"
        )
    return "\n".join(lines) + "\n"


def save_report(output: Path, scores: dict[str, list[Score]], facts: dict[str, Any]) -> None:
    """Write report.json and table.md to `output`. `facts` are further entries of report.json."""
    output.mkdir(parents=True, exist_ok=True)
    rows = {name: [asdict(score) for score in variant_scores] for name, variant_scores in scores.items()}
    (output / "report.json").write_text(json.dumps({**facts, "scores": rows}, indent=2) + "\n")
    (output / "table.md").write_text(markdown(scores))
