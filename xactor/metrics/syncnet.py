"""Define SyncNet, which measures whether lips and sound are in sync (Chung and Zisserman 2016, Out of time).

Two networks map 5 frames of a face and 0.2 s of simultaneous sound to the same space, where pairs in sync are near each
other. The layers and their names are those of github.com/joonson/syncnet_python, so that its published
`syncnet_v2.model` loads. A small model with narrower layers is for users without published weights.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xactor.metrics.mfcc import COEFFICIENTS, ROWS_PER_FRAME
from xactor.metrics.weights import RANDOM, described

WINDOW_FRAMES = 5
# Rows of cepstra (mel-frequency cepstral coefficients of the sound) in a window: 0.2 s.
WINDOW_ROWS = ROWS_PER_FRAME * WINDOW_FRAMES
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Ours: distance of the mouth's centre from the top of a face crop, as a fraction of the side. This leaves room for the
# jaw below the mouth.
_MOUTH = 0.56
# Maximum number of tensors that an error names.
_NAMED = 4
# The only classes that may be loaded from a file that holds a whole pickled module.
_PLAIN_LAYERS = (
    nn.Sequential, nn.Linear, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.MaxPool2d, nn.MaxPool3d, nn.ReLU, set,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyncNetConfig:
    """Set the sizes of SyncNet. The defaults are those of the published model."""

    image_size: int = 224
    """Side of a face crop in pixels."""
    mouth_px: int = 0
    """Side of the square around the mouth that the network sees; 0 means the whole crop, as in the published model."""
    stem_stride: int = 2
    """Stride of the first layer over the picture."""
    lip_channels: tuple[int, ...] = (96, 256, 256, 256, 256, 512)
    """Channels of the six convolutions over the picture."""
    audio_channels: tuple[int, ...] = (64, 192, 384, 256, 256, 512)
    """Channels of the six convolutions over the sound."""
    embedding: int = 1024
    """Width of an embedding."""

    def __post_init__(self):
        for name in ("lip_channels", "audio_channels"):
            channels = getattr(self, name)
            if len(channels) != 6 or min(channels) < 1:
                raise ValueError(f"{name} must be 6 numbers >= 1, got {list(channels)}")
        for name in ("stem_stride", "embedding"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.mouth_px <= self.image_size:
            raise ValueError(f"mouth_px must be within 0..{self.image_size}, got {self.mouth_px}")
        if self.last_side < 1:
            raise ValueError(
                f"image_size or mouth_px is too small for stem_stride {self.stem_stride}: {self.seen_px}"
            )

    @property
    def seen_px(self) -> int:
        """Return the side, in pixels, of the part of a crop that the network sees."""
        return self.mouth_px or self.image_size

    @property
    def last_side(self) -> int:
        """Return the side of the features before the last convolution, whose kernel has the same side: 6 for 224 px.

        The result is 0 if the picture is too small for the layers before.
        """
        side = self.seen_px
        # Kernel, stride and padding of each convolution and pooling that changes the side.
        for kernel, stride, padding in ((7, self.stem_stride, 0), (3, 2, 0), (5, 2, 1), (3, 2, 1), (3, 2, 0)):
            side = (side + 2 * padding - kernel) // stride + 1
            if side < 1:
                return 0
        return side


def small_config() -> SyncNetConfig:
    """Return a small config that trains in minutes on two CPU cores.

    Ours: the same layers, applied to the mouth in a face crop of 64 px. SyncNet's paper also uses only the mouth; the
    published model uses the whole face.
    """
    return SyncNetConfig(
        image_size=64,
        mouth_px=32,
        stem_stride=1,
        lip_channels=(16, 32, 48, 48, 48, 96),
        audio_channels=(16, 32, 48, 48, 48, 96),
        embedding=64,
    )


class SyncNet(nn.Module):
    """Hold two networks: one embeds pictures of lips, the other embeds sound.

    Args:
        config: Sizes; None means those of the published model.
        weights: Name of the weights, which every score repeats.
    """

    def __init__(self, config: SyncNetConfig | None = None, *, weights: str = RANDOM):
        super().__init__()
        self.config, self.weights = config or SyncNetConfig(), weights
        self.netcnnaud = _audio_layers(self.config.audio_channels)
        self.netfcaud = _head(self.config.audio_channels[-1], self.config.embedding)
        self.netcnnlip = _lip_layers(self.config)
        self.netfclip = _head(self.config.lip_channels[-1], self.config.embedding)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def see(self, frames: Tensor) -> Tensor:
        """Embed every window of 5 successive face crops float [B, 3, T, S, S], BGR in 0..255: [B, T - 4, E].

        Only the first layer spans time, so one pass computes all windows. The result equals that of a pass per window.
        """
        lips = self.netcnnlip(self._mouths(frames))  # [B, C, T - 4, 1, 1]
        lips = lips.flatten(2).transpose(1, 2)  # [B, T - 4, C]
        return self.netfclip(lips.flatten(0, 1)).unflatten(0, lips.shape[:2])

    def _mouths(self, frames: Tensor) -> Tensor:
        """Cut the square around the mouth out of crops [B, 3, T, S, S], or return the whole crops."""
        side, size = frames.shape[-1], self.config.mouth_px or frames.shape[-1]
        top, left = min(round(_MOUTH * side - size / 2), side - size), (side - size) // 2
        return frames[..., top : top + size, left : left + size]

    def hear(self, cepstra: Tensor) -> Tensor:
        """Embed windows of cepstra [N, 13, 20], coefficient by time: [N, E]."""
        sound = self.netcnnaud(cepstra[:, None])  # [N, C, 1, 1]
        return self.netfcaud(sound.flatten(1))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {"model_type": "syncnet", "weights": self.weights, **asdict(self.config)}
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / WEIGHTS)
        (Path(folder) / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a model from a folder that `save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: One of the two files is missing.
            ValueError: The folder holds no SyncNet, or its weights do not fit; the message names them.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: {name} is missing")
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
            kind, weights = config.pop("model_type", None), config.pop("weights", "unnamed")
            if kind != "syncnet":
                raise ValueError(f"model_type must be 'syncnet', got {kind!r}")
            sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            model = cls(SyncNetConfig(**sizes), weights=weights)
            state = load_file(folder / WEIGHTS)
        except (ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{folder}: not a SyncNet folder: {error}") from error
        _fill(model, state, str(folder / WEIGHTS))
        return model.eval()


def load_published(path: str | Path) -> SyncNet:
    """Load a published model like `syncnet_v2.model`, in evaluation mode: a state dict, or a whole pickled module.

    No code from the file runs: torch loads only tensors and, in a module, the classes of layers that SyncNet has.

    Raises:
        ValueError: The file does not exist, torch cannot read it as a state dict or a module, or its tensors are
            not the published ones; the message names them.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    try:
        with torch.serialization.safe_globals([*_PLAIN_LAYERS, *_names_of_modules()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a state dict or module that torch loads safely: {reason}") from error
    state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: must contain tensors by name, got {type(loaded).__name__}")
    model = SyncNet(weights=described(path))
    _fill(model, state, str(path))
    return model.eval()


class _PickledModule(nn.Module):
    """Replace the class of the reference implementation in a file that holds a whole pickled module."""


def _names_of_modules() -> list[tuple[type[nn.Module], str]]:
    """Return `_PickledModule` together with each name under which the reference's class may have been pickled."""
    return [(_PickledModule, f"{package}SyncNetModel.S") for package in ("", "syncnet_python.", "syncnet.")]


def _fill(model: SyncNet, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the weights of a state dict to the model. Raises ValueError that names tensors of wrong name or shape.

    Args:
        model: The model to fill.
        state: Tensors by name.
        source: Name of the file, for messages.
    """
    wanted = model.state_dict()
    # Files that torch < 0.4.1 wrote have no `num_batches_tracked`, and scoring does not need it.
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in wanted]
    misshaped = [
        f"{n} {list(state[n].shape)} for {list(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    problems = [
        f"{len(names)} {problem}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{source}: tensors do not fit SyncNet; {'; '.join(problems)}")
    broken = [n for n, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{source}: {broken[0]} contains NaN or infinite numbers")
    model.load_state_dict({**wanted, **state})


def _audio_layers(c: tuple[int, ...]) -> nn.Sequential:
    """Return the layers from cepstra [N, 1, 13, 20] to [N, c[5], 1, 1]. `c` is `SyncNetConfig.audio_channels`."""
    # The last kernel, (5, 4), fits only these sizes.
    assert (COEFFICIENTS, WINDOW_ROWS) == (13, 20)
    return nn.Sequential(
        *_block2d(1, c[0], 3, padding=1),
        # This layer changes nothing, but the published names of later layers count it.
        nn.MaxPool2d(1),
        *_block2d(c[0], c[1], 3, padding=1),
        nn.MaxPool2d(3, stride=(1, 2)),  # [N, c[1], 11, 9]
        *_block2d(c[1], c[2], 3, padding=1),
        *_block2d(c[2], c[3], 3, padding=1),
        *_block2d(c[3], c[4], 3, padding=1),
        nn.MaxPool2d(3, stride=2),  # [N, c[4], 5, 4]
        *_block2d(c[4], c[5], (5, 4)),
    )


def _lip_layers(config: SyncNetConfig) -> nn.Sequential:
    """Return the layers from crops [B, 3, T, S, S] to [B, c[5], T - 4, 1, 1]."""
    c, side = config.lip_channels, config.last_side
    return nn.Sequential(
        *_block3d(
            3, c[0], (WINDOW_FRAMES, 7, 7), stride=config.stem_stride
        ),  # [B, c[0], T - 4, 109, 109] for 224 px
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
        *_block3d(c[0], c[1], (1, 5, 5), stride=2, padding=1),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        *_block3d(c[1], c[2], (1, 3, 3), padding=1),
        *_block3d(c[2], c[3], (1, 3, 3), padding=1),
        *_block3d(c[3], c[4], (1, 3, 3), padding=1),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),  # [B, c[4], T - 4, 6, 6] for 224 px
        *_block3d(c[4], c[5], (1, side, side)),
    )


def _block2d(
    width_in: int, width_out: int, kernel: int | tuple[int, int], *, padding: int = 0
) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width_out, kernel, padding=padding), nn.BatchNorm2d(width_out), nn.ReLU()]


def _block3d(
    width_in: int, width_out: int, kernel: tuple[int, int, int], *, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Return the layers of a block. Stride and padding apply within a frame, not along time."""
    convolution = nn.Conv3d(
        width_in, width_out, kernel, stride=(1, stride, stride), padding=(0, padding, padding)
    )
    return [convolution, nn.BatchNorm3d(width_out), nn.ReLU()]


def _head(width: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, embedding)
    )
