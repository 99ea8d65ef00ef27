"""Measure how well the lips of a talking face fit the sound: offset, distance (SynD) and confidence (SynC).

    model = load_published("syncnet_v2.model")
    score = sync(model, crops, samples)
    score.offset_frames, score.distance, score.confidence

The protocol is that of the reference implementation, github.com/joonson/syncnet_python. SyncNet embeds every window of
5 frames, and the sound of every window. For each offset from -15 to 15 frames, the L2 distance between a window's
embedding and the embedding of the sound at that offset is averaged over the clip. SynD is the smallest of these
averages. SynC is the median of the averages minus SynD.
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

MAX_SHIFT_FRAMES = 15
# A recording is silent if all samples are below this amplitude.
_SILENCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SyncScore:
    """Hold SyncNet's result for one clip."""

    confidence: float
    """SynC; larger is better."""
    distance: float
    """SynD; smaller is better."""
    offset_frames: int
    """Frames by which the sound is ahead of the lips. If it is positive, the sound must be delayed."""
    windows: int
    """Number of compared SyncNet windows of 5 frames."""
    weights: str
    """Name of the model's weights. Scores of different models are not comparable."""
    curve: tuple[float, ...]
    """Average distance at each offset, from the smallest offset to the largest, [2 x max_shift_frames + 1]."""


def sync(
    model: SyncNet,
    frames: Iterable[np.ndarray],
    samples: np.ndarray,
    *,
    max_shift_frames: int = MAX_SHIFT_FRAMES,
    batch_windows: int = 20,
) -> SyncScore:
    """Score a clip at 25 fps. Only the embeddings of a few windows are kept, so memory does not grow.

    As in the reference, the following are ignored: frames without sound, sound without frames, and the last window.
    Where an offset reaches past the clip's ends, the embedding of the sound is zero.

    Args:
        model: SyncNet.
        frames: Face crops uint8 [S, S, 3] RGB from `sync_crop`, S the model's `image_size`.
        samples: Float32 [N], mono, 16 kHz, starting with the first frame.
        max_shift_frames: The largest offset. All offsets from -max_shift_frames to max_shift_frames are compared.
        batch_windows: Number of windows that are computed together; it affects only speed and memory.

    Raises:
        ValueError: The clip is too short for the offsets, a frame has another shape, or there is no sound.
    """
    for name, value in (("max_shift_frames", max_shift_frames), ("batch_windows", batch_windows)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    _check_sound(samples)
    distances = _Distances(max_shift_frames)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for lips, sound in _embeddings(model, frames, samples, batch_windows):
                distances.add(lips, sound)
            distances.end()
    finally:
        model.train(was_training)
    # Ours is this error. The reference accepts shorter clips, whose largest offsets compare with nothing but zeros.
    if distances.windows <= max_shift_frames:
        needed = max_shift_frames + 1 + WINDOW_FRAMES
        had = distances.windows + WINDOW_FRAMES if distances.windows else "fewer than 6"
        raise ValueError(
            f"frames with sound must be >= {needed} for offsets up to {max_shift_frames} frames, got {had}"
        )
    curve = (distances.total / distances.windows).tolist()
    best = int(np.argmin(curve))
    return SyncScore(
        confidence=float(np.median(curve)) - curve[best],
        distance=curve[best],
        offset_frames=best - max_shift_frames,
        windows=distances.windows,
        weights=model.weights,
        curve=tuple(curve),
    )


def cepstra_windows(samples: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return the input of `SyncNet.hear` for `count` windows from frame `first` on: float32 [count, 13, 20].

    A window has 20 rows of 13 cepstra (mel-frequency cepstral coefficients), four rows per video frame.
    """
    rows = mfcc(samples, ROWS_PER_FRAME * first, ROWS_PER_FRAME * (count - 1) + WINDOW_ROWS)
    return np.lib.stride_tricks.sliding_window_view(rows, WINDOW_ROWS, axis=0)[::ROWS_PER_FRAME].copy()


def frames_to_model(frames: np.ndarray) -> Tensor:
    """Convert crops uint8 [..., T, S, S, 3] RGB to input of `SyncNet.see`: float32 [..., 3, T, S, S], BGR 0..255."""
    return torch.from_numpy(np.moveaxis(frames[..., ::-1], -1, -4).astype(np.float32))


class _Distances:
    """Sum the distances between lips and sound at each offset, as the embeddings of windows arrive.

    The object holds the embeddings of at most 2 x max_shift_frames + 1 windows and of one batch.

    Attributes:
        total: Sum of the distances at each offset, float64 [2 x max_shift_frames + 1], from the smallest offset to the
            largest.
        windows: Number of compared windows.
    """

    def __init__(self, max_shift_frames: int):
        self.total = np.zeros(2 * max_shift_frames + 1)
        self.windows = 0
        self._shift = max_shift_frames
        # Embeddings of the lips that are not compared yet.
        self._lips: Tensor | None = None  # [n, E]
        # Embeddings of the sound. The first is `max_shift_frames` frames earlier than the first of `_lips`.
        self._sound: Tensor | None = None  # [m, E]

    def add(self, lips: Tensor, sound: Tensor) -> None:
        """Add the embeddings of the next n windows, [n, E] each."""
        if self._lips is None or self._sound is None:
            self._lips, self._sound = lips, pad(sound, (0, 0, self._shift, 0))
        else:
            self._lips, self._sound = torch.cat([self._lips, lips]), torch.cat([self._sound, sound])
        self._compare()

    def end(self) -> None:
        """Compare the last windows, when no more arrive."""
        if self._sound is not None:
            self._sound = pad(self._sound, (0, 0, 0, self._shift))
            self._compare()

    def _compare(self) -> None:
        """Add the distances of the windows for which the sound of all offsets has arrived, and forget these windows."""
        assert self._lips is not None
        assert self._sound is not None
        ready = len(self._sound) - 2 * self._shift
        if ready < 1:
            return
        around = self._sound.unfold(0, len(self.total), 1).transpose(1, 2)  # [ready, offsets, E]
        # The columns run from earlier sound to later sound.
        distance = pairwise_distance(self._lips[:ready, None], around)  # [ready, offsets]
        # If the lips fit later sound, the sound is late, which is a negative offset. So reverse the columns.
        self.total += distance.double().sum(0).flip(0).cpu().numpy()
        self.windows += ready
        self._lips, self._sound = self._lips[ready:], self._sound[ready:]


def _embeddings(
    model: SyncNet, frames: Iterable[np.ndarray], samples: np.ndarray, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the embeddings of lips and sound, [n, E] each, for batches of n windows."""

    def embed(first: int, crops: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        windows = len(crops) - WINDOW_FRAMES + 1
        lips = model.see(frames_to_model(np.stack(crops))[None].to(model.device))[0]
        cepstra = torch.from_numpy(cepstra_windows(samples, first, windows)).to(model.device)
        return lips, model.hear(cepstra)

    first, waiting = 0, []
    side = model.config.image_size
    for number, crop in enumerate(islice(frames, len(samples) // SAMPLES_PER_FRAME)):
        if crop.shape != (side, side, 3) or crop.dtype != np.uint8:
            raise ValueError(
                f"frame {number} must be uint8 [{side}, {side}, 3], got {crop.dtype} {list(crop.shape)}"
            )
        waiting.append(crop)
        # The reference ignores the last window. So embed a window only when another frame has followed it.
        if len(waiting) == batch + WINDOW_FRAMES:
            yield embed(first, waiting[:-1])
            first, waiting = first + batch, waiting[batch:]
    if len(waiting) > WINDOW_FRAMES:
        yield embed(first, waiting[:-1])


def _check_sound(samples: np.ndarray) -> None:
    """Raise ValueError unless the samples are mono, finite and not silent."""
    if samples.ndim != 1:
        raise ValueError(f"samples must be mono [N], got shape {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError("samples contain NaN or infinite numbers")
    if not len(samples) or max(samples.max(), -samples.min()) < _SILENCE:
        loudest = float(np.abs(samples).max()) if len(samples) else 0
        raise ValueError(
            f"no sound: the loudest of {len(samples)} samples must be >= {_SILENCE}, got {loudest:g}"
        )
