"""Offset, distance and confidence of a talking face: SynD and SynC, by the reference's protocol.

    model = load_published("syncnet_v2.model")
    score = sync(model, crops, samples)
    score.offset_frames, score.distance, score.confidence

The protocol is that of github.com/joonson/syncnet_python: embeddings of every window of 5 frames, the L2 distance of
each from the sound's at -15 to 15 frames, averaged over the clip for each offset. SynD is the least average, SynC the
median of the averages less that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, pairwise_distance

from xactor.metrics.mfcc import ROWS_PER_FRAME, mfcc
from xactor.metrics.syncnet import WINDOW_FRAMES, WINDOW_ROWS, SyncNet
from xactor.rates import SAMPLES_PER_FRAME

MOST_SHIFT = 15  # frames
_SILENCE = 1e-3  # no sample of a silent recording is louder


@dataclass(frozen=True, kw_only=True)
class SyncScore:
    """What SyncNet says of one clip.

    Attributes:
        confidence: SynC; larger is better.
        distance: SynD; smaller is better.
        offset_frames: by how much the sound runs ahead of the lips; > 0 where it must be delayed by so much.
        windows: how many windows of 5 frames were looked at.
        weights: which model says so. Scores of different models are not to be compared.
        curve: the average distance at each offset, from the least to the greatest: [2 x most_shift + 1].
    """

    confidence: float
    distance: float
    offset_frames: int
    windows: int
    weights: str
    curve: tuple[float, ...]


def sync(
    model: SyncNet,
    frames: Iterable[np.ndarray],
    samples: np.ndarray,
    *,
    most_shift: int = MOST_SHIFT,
    batch_windows: int = 20,
) -> SyncScore:
    """Scores a clip at 25 fps. Neither its frames nor its embeddings are kept: memory does not grow with its length.

    As in the reference, what one of the two has beyond the other is left out, so is the last window, and past the
    clip's ends stand zero embeddings.

    Args:
        frames: face crops uint8 [S, S, 3] RGB, S the model's `image_size`, from `sync_crop`.
        samples: float32 [N], mono, 16 kHz, beginning with the first frame.
        most_shift: offsets from -most_shift to most_shift frames are tried.
        batch_windows: how many windows are computed at once; it changes nothing but speed and memory.

    Raises:
        ValueError: a clip too short for the offsets, a frame of another shape, no sound.
    """
    for name, value in (("most_shift", most_shift), ("batch_windows", batch_windows)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    _check_sound(samples)
    distances = _Distances(most_shift)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for seen, heard in _embeddings(model, frames, samples, batch_windows):
                distances.add(seen, heard)
            distances.end()
    finally:
        model.train(was_training)
    # Ours: the reference takes shorter clips too, whose greatest offsets compare with zeros alone.
    if distances.windows <= most_shift:
        needed = most_shift + 1 + WINDOW_FRAMES
        had = distances.windows + WINDOW_FRAMES if distances.windows else "fewer than 6"
        raise ValueError(
            f"frames with sound must be >= {needed} for offsets up to {most_shift} frames, got {had}"
        )
    curve = (distances.total / distances.windows).tolist()
    best = int(np.argmin(curve))
    return SyncScore(
        confidence=float(np.median(curve)) - curve[best],
        distance=curve[best],
        offset_frames=best - most_shift,
        windows=distances.windows,
        weights=model.weights,
        curve=tuple(curve),
    )


def cepstra_windows(samples: np.ndarray, first: int, count: int) -> np.ndarray:
    """The sound of `count` windows from frame `first` on, for `SyncNet.hear`: float32 [count, 13, 20]."""
    rows = mfcc(samples, ROWS_PER_FRAME * first, ROWS_PER_FRAME * (count - 1) + WINDOW_ROWS)
    return np.lib.stride_tricks.sliding_window_view(rows, WINDOW_ROWS, axis=0)[::ROWS_PER_FRAME].copy()


def frames_to_model(frames: np.ndarray) -> Tensor:
    """Crops uint8 [..., T, S, S, 3] RGB to what `SyncNet.see` takes: float32 [..., 3, T, S, S], BGR in 0..255."""
    return torch.from_numpy(np.moveaxis(frames[..., ::-1], -1, -4).astype(np.float32))


class _Distances:
    """Sums of distances by offset, as windows arrive. Keeps the embeddings of 2 x most_shift + 1 windows and a batch.

    Attributes:
        total: float64 [2 x most_shift + 1], from the least offset to the greatest.
        windows: that have been compared.
    """

    def __init__(self, most_shift: int):
        self.total = np.zeros(2 * most_shift + 1)
        self.windows = 0
        self._shift = most_shift
        self._seen: Tensor | None = None  # [n, E], not compared yet
        self._heard: Tensor | None = None  # [m, E], from `most_shift` before the first of these

    def add(self, seen: Tensor, heard: Tensor) -> None:
        """The embeddings of the next windows, [n, E] each."""
        if self._seen is None or self._heard is None:
            self._seen, self._heard = seen, pad(heard, (0, 0, self._shift, 0))
        else:
            self._seen, self._heard = torch.cat([self._seen, seen]), torch.cat([self._heard, heard])
        self._compare()

    def end(self) -> None:
        """No more come."""
        if self._heard is not None:
            self._heard = pad(self._heard, (0, 0, 0, self._shift))
            self._compare()

    def _compare(self) -> None:
        assert self._seen is not None
        assert self._heard is not None
        ready = len(self._heard) - 2 * self._shift
        if ready < 1:
            return
        around = self._heard.unfold(0, len(self.total), 1).transpose(1, 2)  # [ready, offsets, E]
        apart = pairwise_distance(
            self._seen[:ready, None], around
        )  # [ready, offsets], later sound to the right
        # Lips that fit later sound have it late: so the offset falls where the place rises.
        self.total += apart.double().sum(0).flip(0).cpu().numpy()
        self.windows += ready
        self._seen, self._heard = self._seen[ready:], self._heard[ready:]


def _embeddings(
    model: SyncNet, frames: Iterable[np.ndarray], samples: np.ndarray, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of lips and sound, [n, E] each, batch by batch."""

    def embed(first: int, crops: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        windows = len(crops) - WINDOW_FRAMES + 1
        seen = model.see(frames_to_model(np.stack(crops))[None].to(model.device))[0]
        heard = torch.from_numpy(cepstra_windows(samples, first, windows)).to(model.device)
        return seen, model.hear(heard)

    first, waiting = 0, []
    side = model.config.image_size
    for number, crop in enumerate(islice(frames, len(samples) // SAMPLES_PER_FRAME)):
        if crop.shape != (side, side, 3) or crop.dtype != np.uint8:
            raise ValueError(
                f"frame {number} must be uint8 [{side}, {side}, 3], got {crop.dtype} {list(crop.shape)}"
            )
        waiting.append(crop)
        # The reference leaves the last window out: one counts when a frame has followed it.
        if len(waiting) == batch + WINDOW_FRAMES:
            yield embed(first, waiting[:-1])
            first, waiting = first + batch, waiting[batch:]
    if len(waiting) > WINDOW_FRAMES:
        yield embed(first, waiting[:-1])


def _check_sound(samples: np.ndarray) -> None:
    if samples.ndim != 1:
        raise ValueError(f"samples must be mono [N], got shape {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinite numbers")
    if not len(samples) or max(samples.max(), -samples.min()) < _SILENCE:
        loudest = float(np.abs(samples).max()) if len(samples) else 0
        raise ValueError(
            f"no sound: the loudest of {len(samples)} samples must be >= {_SILENCE}, got {loudest:g}"
        )
