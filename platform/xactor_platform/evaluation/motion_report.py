"""Report what a motion model has learned: compare the sampled with the true lip opening on held-out clips.

The lip opening is read from motion latents. Latents that are the fixed embedding of a control track (`xactor.controls`)
give the lip opening directly. For the latents of a motion encoder, a linear map is fitted on training clips whose
control track is known.
"""

import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from xactor.controls import LATENT_DIM, decode_controls, lip_opening
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.motion import MotionTransformer, SamplingConfig, load_motion_model, sample_motion
from xactor.origin import AUDIO, LATENTS, Origin, check_fit
from xactor.rates import FPS
from xactor_platform.data.batch import read_batch
from xactor_platform.data.index import CONTROLS, Index
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import MicroBatch
from xactor_platform.evaluation.linear import fit_linear
from xactor_platform.training.run.folder import EXPORT, RunFolder
from xactor_platform.training.run.run_log import read_metrics

# The longest clip is scored in this many equal parts too, which shows whether the quality falls over time.
QUARTERS = 4
# Minimum number of frames of training clips that the linear map is fitted on.
_FITTED_FRAMES = 4000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MotionReport:
    """Hold correlations of the sampled and the true lip opening, over all held-out frames and over one long rollout."""

    clips: int
    """Number of held-out clips."""
    frames: int
    """Number of frames of all clips together."""
    steps: int
    """DDIM steps of a chunk, the frames that are denoised together."""
    audio_cfg: float
    """Scale of the classifier-free guidance by the audio in `with_cfg`, `shuffled` and the rollout."""
    readable: float
    """Correlation of the true lip opening with the one that is read from the true latents. It is the upper bound for
    the other correlations, and 1 for the fixed embedding."""
    with_cfg: float
    """Correlation if the latents are sampled with guidance."""
    without_cfg: float
    """Correlation if the latents are sampled without guidance."""
    shuffled: float
    """Correlation if the audio is shifted by half a clip. This is near 0 if the lips follow the audio."""
    rollout_s: float
    """Length of the rollout in seconds. The rollout is the longest clip, sampled with guidance."""
    quarters: list[float]
    """Correlation in each quarter of the rollout."""
    rms: float
    """Standard deviation of the latents in the rollout's last quarter, divided by that of the true latents."""

    def table(self) -> str:
        """Return a table for the terminal."""
        quarters = "  ".join(f"{q:.2f}" for q in self.quarters)
        return "\n".join(
            [
                f"Lip opening on {self.clips} held-out clips ({self.frames / FPS:.0f} s), "
                f"{self.steps} DDIM steps: correlation with the truth",
                f"  the true latents          {self.readable:.2f}",
                f"  audio CFG {self.audio_cfg:g}               {self.with_cfg:.2f}",
                f"  without CFG               {self.without_cfg:.2f}",
                f"  shuffled audio            {self.shuffled:.2f}",
                f"  {self.rollout_s:.0f} s rollout, quarters    {quarters}",
                f"  its last quarter's RMS    {self.rms:.2f} of the truth's",
            ]
        )


def report_motion(
    run: str,
    shards: str,
    output: Path,
    *,
    config: SamplingConfig | None = None,
    seed: int = 0,
    max_clips: int = 8,
) -> MotionReport:
    """Sample the run's exported model on held-out clips, and return the report.

    Write report.json, loss.png and lips.png to `output`.

    Args:
        run: Local folder of the run.
        shards: URI of the shards. Those named `test-*` and `val-*` are used.
        output: Folder for the report.
        config: Options of the sampling. None means the defaults.
        seed: Seed of the sampling.
        max_clips: Maximum number of held-out clips. The longest are used.

    Raises:
        ValueError: There are no held-out clips, the lip opening of the latents is not known, or the model works with
            latents or features of another origin.
    """
    config = config or SamplingConfig()
    clips, lips = held_out_clips(shards, max_clips=max_clips)
    model = load_fitting(Path(run) / EXPORT, shards)
    without_guidance = replace(config, audio_cfg=1.0)
    latents, truth = [clip.motion for clip in clips], [clip.lips for clip in clips]
    guided, unguided, shuffled = [], [], []
    for clip in clips:
        shifted_audio = torch.roll(clip.audio, len(clip.audio) // 2, dims=0)
        both = sample_motion(
            model, torch.stack([clip.audio, shifted_audio]), seeds=[seed, seed], config=config
        )
        guided.append(both[0].numpy())
        shuffled.append(both[1].numpy())
        plain = sample_motion(model, clip.audio[None], seeds=[seed], config=without_guidance)
        unguided.append(plain[0].numpy())
    quarters = [
        correlation(lips(part), true)
        for part, true in zip(
            np.array_split(guided[0], QUARTERS), np.array_split(truth[0], QUARTERS), strict=True
        )
    ]
    last, true_last = np.array_split(guided[0], QUARTERS)[-1], np.array_split(latents[0], QUARTERS)[-1]

    def over_clips(sampled: list[np.ndarray]) -> float:
        return correlation(np.concatenate([lips(z) for z in sampled]), np.concatenate(truth))

    report = MotionReport(
        clips=len(clips),
        frames=sum(map(len, truth)),
        steps=config.steps,
        audio_cfg=config.audio_cfg,
        readable=over_clips(latents),
        with_cfg=over_clips(guided),
        without_cfg=over_clips(unguided),
        shuffled=over_clips(shuffled),
        rollout_s=len(truth[0]) / FPS,
        quarters=quarters,
        rms=float(last.std(0).mean() / true_last.std(0).mean()),
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    _plot_loss(read_metrics(RunFolder(str(Path(run).parent), Path(run).name)), output / "loss.png")
    _plot_lips(truth[0], lips(guided[0]), lips(shuffled[0]), report, output / "lips.png")
    return report


def load_fitting(export: Path, shards: str) -> MotionTransformer:
    """Load a motion model that works with the latents and the audio features of shards.

    Args:
        export: Folder of the model.
        shards: URI of the shards.

    Raises:
        ValueError: The model works with latents or features of another origin, or it cannot be loaded.
    """
    model, index = load_motion_model(export), load_index(shards)
    for kind in (LATENTS, AUDIO):
        own = Origin(str(export / "motion"), getattr(model.config, kind))
        for note in check_fit(kind, own, index.origin(kind)):
            logger.warning("%s", note)
    return model


@dataclass(frozen=True, kw_only=True)
class HeldOutClip:
    """Hold one clip and its true lip opening."""

    motion: np.ndarray
    """Stored latents [T, D]."""
    audio: torch.Tensor
    """Audio features [T, L, F]."""
    lips: np.ndarray
    """True lip opening [T]."""


def held_out_clips(
    shards: str, *, max_clips: int
) -> tuple[list[HeldOutClip], Callable[[np.ndarray], np.ndarray]]:
    """Read the longest held-out clips of shards.

    Returns:
        The clips, the longest first, and a function from latents [T, D] to lip opening [T].

    Raises:
        ValueError: There are no held-out clips, or the lip opening of the latents is not known.
    """
    index = load_index(shards)
    held_out = index.held_out()
    if not held_out.samples:
        raise ValueError(f"{shards}: no held-out shards (test-*, val-*) to report on")
    lips = lip_reader(index)
    clips = []
    for row in np.argsort(-held_out.frames, kind="stable")[:max_clips]:
        z, audio = read_clip(held_out, int(row))
        clips.append(HeldOutClip(motion=z, audio=audio, lips=_true_lips(held_out, int(row), z, lips)))
    return clips, lips


def read_clip(index: Index, row: int) -> tuple[np.ndarray, torch.Tensor]:
    """Read all frames of a clip: latents [T, D] and audio features [T, L, F].

    Raises:
        ValueError: The clip cannot be used.
    """
    all_frames = MicroBatch(np.array([row]), np.array([0]), index.frames[row : row + 1])
    batch = read_batch(index, all_frames)
    if batch.bad:
        raise ValueError(f"held-out {batch.bad[0]}")
    return batch.motion[0], torch.from_numpy(batch.audio[0])


def _true_lips(index: Index, row: int, z: np.ndarray, lips: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return a clip's lip opening [T].

    Args:
        index: Index of the clip's shards.
        row: Row of the clip in the index.
        z: Latents of the clip [T, D]. They are used only if the shards hold no control tracks.
        lips: Function from latents [T, D] to lip opening [T].
    """
    return _controlled_lips(index, row) if _has_controls(index) else lips(z)


def _has_controls(index: Index) -> bool:
    return CONTROLS in index.offset


def _controlled_lips(index: Index, row: int) -> np.ndarray:
    return lip_opening(np.load(io.BytesIO(index.read(row, CONTROLS)), allow_pickle=False))


def lip_reader(index: Index) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from latents [T, D] to lip opening [T].

    Raises:
        ValueError: The lip opening of these latents is not known.
    """
    if not _has_controls(index):
        made_by, width = index.read_meta(0).get("motion"), index.frame_shape.latent_width
        has_other_origin = index.origin(LATENTS).name not in (None, CONTROLS_ORIGIN)
        if made_by == "encoder" or has_other_origin or width != LATENT_DIM:
            raise ValueError(
                f"{index.location.uri}: lip opening needs the fixed embedding's latents, or {CONTROLS} next to others"
            )
        return lambda z: lip_opening(decode_controls(z))
    training = index.training()
    if not training.samples:
        raise ValueError(f"{index.location.uri}: no training shards (train-*) to fit the lip opening on")
    z, lips = [], []
    for row in np.random.default_rng(0).permutation(training.samples):
        z.append(np.load(io.BytesIO(training.read(int(row), "motion.npy")), allow_pickle=False).astype(float))
        lips.append(_controlled_lips(training, int(row)))
        if sum(map(len, z)) >= _FITTED_FRAMES:
            break
    predict = fit_linear(np.concatenate(z), np.concatenate(lips)[:, None])
    return lambda latents: predict(latents)[:, 0]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation, or 0 if one of the two is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _plot_loss(rows: list[dict], path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    steps, losses = [r["step"] for r in rows], np.array([r["loss"] for r in rows])
    axes.plot(steps, losses, color="#9db8d2", linewidth=0.8, label="a step")
    if len(losses) > 20:
        smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
        axes.plot(steps[19:], smooth, color="#1f5f99", label="mean of 20 steps")
    held_out = [(r["step"], r["held_out_loss"]) for r in rows if "held_out_loss" in r]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#c2571a", label="held-out")
    axes.set(xlabel="step", ylabel="velocity loss", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def _plot_lips(
    true: np.ndarray, sampled: np.ndarray, shuffled: np.ndarray, report: MotionReport, path: Path
) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 6), layout="constrained")
    # Plot 10 s (250 frames) from the beginning and from the end of the clip.
    shown = min(len(true), 250)
    for axes, first in zip(figure.subplots(2), (0, len(true) - shown), strict=True):
        seconds = np.arange(first, first + shown) / FPS
        part = slice(first, first + shown)
        axes.plot(seconds, true[part], color="black", label="true")
        axes.plot(
            seconds,
            sampled[part],
            color="#c2571a",
            label=f"sampled (r = {report.with_cfg:.2f} over all clips)",
        )
        axes.plot(
            seconds,
            shuffled[part],
            color="#9db8d2",
            linewidth=0.9,
            label=f"shuffled audio (r = {report.shuffled:.2f})",
        )
        axes.set(xlabel="seconds", ylabel="lip opening")
        axes.legend(loc="upper right", fontsize=8)
    figure.suptitle(f"A held-out clip of {len(true) / FPS:.0f} s: its beginning and its end")
    figure.savefig(path, dpi=110)
