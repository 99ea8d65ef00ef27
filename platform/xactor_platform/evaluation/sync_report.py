"""What a SyncNet can tell, on held-out clips: sound in time from sound that is shifted or another's, with a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from xactor.metrics.sync import MOST_SHIFT, SyncScore, frames_to_model, sync
from xactor.metrics.syncnet import WINDOW_FRAMES, SyncNet
from xactor.randomness import keyed_generator
from xactor.rates import SAMPLES_PER_FRAME
from xactor_platform.evaluation.syncnet_training import Clip

PIECE_FRAMES = 100
LEAST_SHIFT, GREATEST_SHIFT = 3, 10  # frames, of the shifts that are to be told from none
_BATCH = 100  # windows
_SHOWN = 8  # pieces in the plot


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """Of pieces of 4 s of held-out clips, the sound of each shifted by a drawn number of frames within +-10.

    weights: of which model. windows: of 5 frames, in the AUC by windows.
    found: the part of the pieces whose offset is found to within a frame.
    auc_windows, auc_pieces: how often a true distance is less than one shifted by 3 to 10 frames, of single windows and
        of the averages over pieces; 0.5 is chance.
    confidence_true, confidence_swapped: SynC with its own sound, and with another clip's: means.
    distance_true, distance_swapped: SynD likewise.
    """

    weights: str
    clips: int
    pieces: int
    windows: int
    found: float
    auc_windows: float
    auc_pieces: float
    confidence_true: float
    confidence_swapped: float
    distance_true: float
    distance_swapped: float

    def table(self) -> str:
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
    """Scores pieces of clips; writes sync.json and sync.png to a folder.

    Args:
        clips: at least two, of crops of the model's `image_size`.

    Raises:
        ValueError: fewer than two clips that are long enough.
    """
    spare = GREATEST_SHIFT  # of sound before and after a piece
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
        clip, other = long_enough[number], long_enough[(number + 1) % len(long_enough)]
        crops = clip.crops[start : start + PIECE_FRAMES]
        own.append(sync(model, crops, _sound(clip, start)))
        shifted.append(sync(model, crops, _sound(clip, start + offset)))
        elsewhere = start % (len(other.crops) - PIECE_FRAMES)
        swapped.append(sync(model, crops, _sound(other, elsewhere)))
    near, off = zip(*(_distances(model, clip) for clip in long_enough), strict=True)
    curves = np.array([score.curve for score in own])  # [pieces, 31]
    away = np.abs(np.arange(-MOST_SHIFT, MOST_SHIFT + 1))
    report = SyncReport(
        weights=model.weights,
        clips=len(long_enough),
        pieces=len(pieces),
        windows=sum(map(len, near)),
        found=float(
            np.mean([abs(s.offset_frames - o) <= 1 for s, o in zip(shifted, offsets.tolist(), strict=True)])
        ),
        auc_windows=auc(np.concatenate(near), np.concatenate(off)),
        auc_pieces=auc(
            curves[:, away == 0].ravel(),
            curves[:, (away >= LEAST_SHIFT) & (away <= GREATEST_SHIFT)].ravel(),
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
    """How often one of the first is less than one of the second, ties counted half."""
    more = np.sort(more)
    below, up_to = np.searchsorted(more, less, "left"), np.searchsorted(more, less, "right")
    return float(1 - (below + up_to).mean() / 2 / len(more))


def _sound(clip: Clip, start: int) -> np.ndarray:
    """Of a piece: begun later than its pictures, the sound runs ahead of them."""
    return clip.samples[start * SAMPLES_PER_FRAME : (start + PIECE_FRAMES) * SAMPLES_PER_FRAME]


@torch.inference_mode()
def _distances(model: SyncNet, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Of a clip's single windows: from their own sound, and from sound 3 to 10 frames off."""
    seen, heard = [], []
    for first in range(0, clip.windows, _BATCH):
        count = min(_BATCH, clip.windows - first)
        crops = frames_to_model(clip.crops[first : first + count + WINDOW_FRAMES - 1])
        seen.append(model.see(crops[None].to(model.device))[0])
        heard.append(model.hear(torch.from_numpy(clip.cepstra[first : first + count]).to(model.device)))
    d = torch.cdist(torch.cat(seen), torch.cat(heard)).cpu().numpy()  # [windows, windows]
    place = np.arange(len(d))
    apart = np.abs(place[:, None] - place)
    return d[apart == 0], d[(apart >= LEAST_SHIFT) & (apart <= GREATEST_SHIFT)]


def _plot(path: Path, scores: dict[str, list[SyncScore]]) -> None:
    """Distance over offset: pieces with their own sound and with another's."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    offsets = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    for axes, (title, some) in zip(figure.subplots(1, len(scores), sharey=True), scores.items(), strict=True):
        for score in some[:_SHOWN]:
            axes.plot(offsets, score.curve, color="0.7", linewidth=0.8)
        axes.plot(offsets, np.mean([score.curve for score in some], axis=0), color="tab:blue", linewidth=2)
        axes.axvline(0, color="0.85", zorder=0)
        axes.set(title=title, xlabel="offset, frames", ylabel="mean distance")
    figure.savefig(path, dpi=110)
