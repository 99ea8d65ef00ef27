"""Report how well a SyncNet tells a held-out clip's sound from the same sound shifted and from another clip's sound."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from xactor.metrics.sync import MAX_SHIFT_FRAMES, SyncScore, frames_to_model, sync
from xactor.metrics.syncnet import WINDOW_FRAMES, SyncNet
from xactor.randomness import keyed_generator
from xactor.rates import SAMPLES_PER_FRAME
from xactor_platform.evaluation.syncnet_training import Clip

# Length of a piece of a clip in frames: 4 s at 25 fps.
PIECE_FRAMES = 100
# Smallest and largest shift, in frames, of the sound that the model must tell from synchronous sound.
MIN_SHIFT, MAX_SHIFT = 3, 10
# Number of windows that are embedded together. A window is 5 successive frames, the length that SyncNet embeds.
_BATCH = 100
# Number of pieces whose curves the plot shows.
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """Hold the figures over pieces of 4 s of held-out clips. SynC is SyncNet's confidence, and SynD its distance."""

    weights: str
    """Name of the model's weights."""
    clips: int
    """Number of held-out clips that are long enough."""
    pieces: int
    """Number of pieces of 4 s."""
    windows: int
    """Number of windows of 5 frames in `auc_windows`."""
    found: float
    """Share of the pieces whose offset is found with an error of at most one frame. For this figure the sound of each
    piece is shifted by a random offset within -10..10 frames."""
    auc_windows: float
    """Probability that a window's distance from its own sound is less than a window's distance from sound that is
    shifted by 3 to 10 frames (area under the ROC curve). Guessing gives 0.5."""
    auc_pieces: float
    """The same probability for the average distance over a piece."""
    confidence_true: float
    """Mean SynC with the piece's own sound."""
    confidence_swapped: float
    """Mean SynC with another clip's sound."""
    distance_true: float
    """Mean SynD with the piece's own sound."""
    distance_swapped: float
    """Mean SynD with another clip's sound."""

    def table(self) -> str:
        """Return a table for the terminal."""
        return "\n".join(
            [
                f"SyncNet ({self.weights}) on {self.pieces} pieces of 4 s of {self.clips} held-out clips",
                f"  offset found to a frame     {self.found:.0%}",
                f"  AUC true from shifted       {self.auc_windows:.3f} by windows, {self.auc_pieces:.3f} by pieces",
                "  its own sound, another's    "
                f"confidence (SynC) {self.confidence_true:.2f}, {self.confidence_swapped:.2f}; "
                f"distance (SynD) {self.distance_true:.2f}, {self.distance_swapped:.2f}",
            ]
        )


def report_sync(
    model: SyncNet, clips: Sequence[Clip], output: Path | None = None, *, seed: int = 0
) -> SyncReport:
    """Score pieces of clips, and return the report. Write sync.json and sync.png to `output`.

    Args:
        model: The SyncNet.
        clips: At least two clips, with crops of the model's `image_size`.
        output: Folder for the report. None writes nothing.
        seed: Seed of the shifts.

    Raises:
        ValueError: Fewer than two clips are long enough.
    """
    # Frames that a clip must have before and after a piece, from which the shifted sound is taken.
    spare = MAX_SHIFT
    long_enough = [clip for clip in clips if len(clip.crops) >= PIECE_FRAMES + 2 * spare]
    if len(long_enough) < 2:
        raise ValueError(
            f"held-out clips of >= {PIECE_FRAMES + 2 * spare} frames must be >= 2, got {len(long_enough)}"
        )
    pieces = [
        (number, start)
        for number, clip in enumerate(long_enough)
        for start in range(spare, len(clip.crops) - PIECE_FRAMES - spare + 1, PIECE_FRAMES)
    ]
    offsets = torch.randint(-spare, spare + 1, (len(pieces),), generator=keyed_generator(seed, "offsets"))
    own, swapped, shifted = [], [], []
    for (number, start), offset in zip(pieces, offsets.tolist(), strict=True):
        clip, other_clip = long_enough[number], long_enough[(number + 1) % len(long_enough)]
        crops = clip.crops[start : start + PIECE_FRAMES]
        own.append(sync(model, crops, _sound(clip, start)))
        shifted.append(sync(model, crops, _sound(clip, start + offset)))
        # The other clip may be shorter, so its piece may start at another frame.
        other_start = start % (len(other_clip.crops) - PIECE_FRAMES)
        swapped.append(sync(model, crops, _sound(other_clip, other_start)))
    in_time, off = zip(*(_distances(model, clip) for clip in long_enough), strict=True)
    is_found = [
        abs(score.offset_frames - offset) <= 1
        for score, offset in zip(shifted, offsets.tolist(), strict=True)
    ]
    curves = np.array([score.curve for score in own])  # [pieces, 31]
    shifts = np.abs(np.arange(-MAX_SHIFT_FRAMES, MAX_SHIFT_FRAMES + 1))
    report = SyncReport(
        weights=model.weights,
        clips=len(long_enough),
        pieces=len(pieces),
        windows=sum(map(len, in_time)),
        found=float(np.mean(is_found)),
        auc_windows=auc(np.concatenate(in_time), np.concatenate(off)),
        auc_pieces=auc(
            curves[:, shifts == 0].ravel(),
            curves[:, (shifts >= MIN_SHIFT) & (shifts <= MAX_SHIFT)].ravel(),
        ),
        confidence_true=float(np.mean([score.confidence for score in own])),
        confidence_swapped=float(np.mean([score.confidence for score in swapped])),
        distance_true=float(np.mean([score.distance for score in own])),
        distance_swapped=float(np.mean([score.distance for score in swapped])),
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "sync.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        _plot(output / "sync.png", {"its own sound": own, "another's sound": swapped})
    return report


def auc(less: np.ndarray, more: np.ndarray) -> float:
    """Return the probability that a value of `less` is less than a value of `more`. Ties count half."""
    more = np.sort(more)
    below, up_to = np.searchsorted(more, less, "left"), np.searchsorted(more, less, "right")
    return float(1 - (below + up_to).mean() / 2 / len(more))


def _sound(clip: Clip, start: int) -> np.ndarray:
    """Return the sound of a piece from frame `start` on. If the pictures start earlier, the sound is ahead of them."""
    return clip.samples[start * SAMPLES_PER_FRAME : (start + PIECE_FRAMES) * SAMPLES_PER_FRAME]


@torch.inference_mode()
def _distances(model: SyncNet, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of a clip's windows from their own sound, and from sound that is 3 to 10 frames away."""
    seen, heard = [], []
    for first in range(0, clip.windows, _BATCH):
        count = min(_BATCH, clip.windows - first)
        crops = frames_to_model(clip.crops[first : first + count + WINDOW_FRAMES - 1])
        seen.append(model.see(crops[None].to(model.device))[0])
        heard.append(model.hear(torch.from_numpy(clip.cepstra[first : first + count]).to(model.device)))
    d = torch.cdist(torch.cat(seen), torch.cat(heard)).cpu().numpy()  # [windows, windows]
    numbers = np.arange(len(d))
    shift = np.abs(numbers[:, None] - numbers)
    return d[shift == 0], d[(shift >= MIN_SHIFT) & (shift <= MAX_SHIFT)]


def _plot(path: Path, scores: dict[str, list[SyncScore]]) -> None:
    """Plot the mean distance over the sound's offset, in one panel per title: some pieces in grey, the mean in blue."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    offsets = np.arange(-MAX_SHIFT_FRAMES, MAX_SHIFT_FRAMES + 1)
    panels = figure.subplots(1, len(scores), sharey=True)
    for axes, (title, pieces) in zip(panels, scores.items(), strict=True):
        for score in pieces[:_SHOWN]:
            axes.plot(offsets, score.curve, color="0.7", linewidth=0.8)
        axes.plot(offsets, np.mean([score.curve for score in pieces], axis=0), color="tab:blue", linewidth=2)
        axes.axvline(0, color="0.85", zorder=0)
        axes.set(title=title, xlabel="offset, frames", ylabel="mean distance")
    figure.savefig(path, dpi=110)
