"""Compute DEmo, the distance of a generated video's emotions from the true video's (Paper 4.1).

Source: the paper names EMONet (Toisoul et al. 2021, "Estimation of continuous valence and arousal levels from faces in
naturalistic conditions") and "the L1 difference between predicted and ground-truth emotion vectors", and gives no more
detail.

Ours, because the paper leaves these choices open:

- A frame's emotion vector is the softmax over EMONet's expressions (neutral, happy, sad, surprise, fear, disgust,
  anger, contempt; or five of them), then valence and arousal, each clipped to -1..1 as EMONet's own demo does.
- DEmo is the L1 norm of the difference of the two vectors (a sum over the vector, 0 to 6), averaged over the frames.
  Frame n of the generated video is compared with frame n of the true video, because the metric asks whether the emotion
  fits the sound: the right emotion at the wrong time is an error. Both videos must have the same number of frames.
- Frames in which one of the two videos shows no face are excluded, and the score's note gives their number.

EMONet's crop, as in its authors' evaluation code: a square around the 68 points of their landmark model, from brows to
chin. The square's side is (w + h) / 1.1, where w and h are the sides of the points' bounding box. The square is resized
to 256 x 256, RGB in 0..1.

The weights, `emonet_8.pth` and `emonet_5.pth` of github.com/face-analysis/emonet, are under CC BY-NC-ND 4.0: not for
commercial use. `ScriptedModel` runs a TorchScript model of the user instead, which maps pictures [B, 3, 256, 256] in
0..1 to vectors [B, K].
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xactor.faces import CropBox, Face
from xactor.metrics import Score
from xactor.metrics.weights import RANDOM, described, first_line

SIDE_PX = 256
_LANDMARKS = 68
_HOURGLASSES = 2
# Halvings of the side in an hourglass, from 64 to 4.
_DEPTH = 4
# Channels of the features.
_WIDTH = 256

# MediaPipe's landmarks on the outline of EMONet's 68 points: the upper edges of both brows, and the edge of the face
# from ear to chin to ear.
_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
_RIM = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)


class EmotionModel(Protocol):
    """Map pictures [B, 3, 256, 256] in 0..1 to emotion vectors [B, K]. `EmoNetVectors` and `ScriptedModel` do so."""

    weights: str

    def __call__(self, pictures: Tensor) -> Tensor: ...


class EmoNetOutput(NamedTuple):
    """Hold the outputs of EMONet."""

    expression: Tensor
    """Logits of the expressions, [B, E]."""
    valence: Tensor
    """Valence, [B]."""
    arousal: Tensor
    """Arousal, [B]."""
    heatmap: Tensor
    """Heat maps of the landmarks, [B, 68, 64, 64]."""


class EmoNet(nn.Module):
    """Run a face alignment network of two hourglasses, and an emotion head that attends to the landmarks.

    Parameters have the published names, so some names are short.

    Args:
        expressions: Number of expressions.

    Attributes:
        weights: Name of the loaded weights, for `Score.weights`.
    """

    def __init__(self, expressions: int = 8):
        super().__init__()
        self.weights = RANDOM
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2, self.conv3, self.conv4 = _Block(64, 128), _Block(128, 128), _Block(128, _WIDTH)
        for i in range(_HOURGLASSES):
            self.add_module(f"m{i}", _Hourglass(_DEPTH))
            self.add_module(f"top_m_{i}", _Block(_WIDTH, _WIDTH))
            self.add_module(f"conv_last{i}", nn.Conv2d(_WIDTH, _WIDTH, 1))
            self.add_module(f"bn_end{i}", nn.BatchNorm2d(_WIDTH))
            self.add_module(f"l{i}", nn.Conv2d(_WIDTH, _LANDMARKS, 1))
            # These map the features and the heat maps, which are then added to the next hourglass's input.
            if i < _HOURGLASSES - 1:
                self.add_module(f"bl{i}", nn.Conv2d(_WIDTH, _WIDTH, 1))
                self.add_module(f"al{i}", nn.Conv2d(_LANDMARKS, _WIDTH, 1))
        self.conv1x1_input_emo_2 = nn.Conv2d(_WIDTH * (_HOURGLASSES + 1), _WIDTH, 1)
        # [B, 256, 64, 64] to [B, 256, 4, 4].
        halvings = (layer for _ in range(4) for layer in (_Block(_WIDTH, _WIDTH), nn.MaxPool2d(2)))
        self.emo_net_2 = nn.Sequential(*halvings)
        self.emo_fc_2 = nn.Sequential(
            nn.Linear(_WIDTH, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, expressions + 2)
        )

    def forward(self, pictures: Tensor) -> EmoNetOutput:
        """Compute the outputs for pictures [B, 3, 256, 256] RGB in 0..1."""
        x = F.relu(self.bn1(self.conv1(pictures)))  # [B, 64, 128, 128]
        x = F.max_pool2d(self.conv2(x), 2)  # [B, 128, 64, 64]
        x = self.conv4(self.conv3(x))  # [B, 256, 64, 64]
        layer = self.get_submodule
        outputs = []
        hourglass_input = heatmap = x
        for i in range(_HOURGLASSES):
            y = layer(f"top_m_{i}")(layer(f"m{i}")(hourglass_input))
            y = F.relu(layer(f"bn_end{i}")(layer(f"conv_last{i}")(y)))
            heatmap = layer(f"l{i}")(y)  # [B, 68, 64, 64]
            if i < _HOURGLASSES - 1:
                y = layer(f"bl{i}")(y)
                hourglass_input = hourglass_input + y + layer(f"al{i}")(heatmap)
            outputs.append(y)
        attention = heatmap.sum(1, keepdim=True)  # [B, 1, 64, 64]
        y = torch.cat([x, torch.cat(outputs, dim=1) * attention], dim=1)  # [B, 768, 64, 64]
        y = self.emo_net_2(self.conv1x1_input_emo_2(y))  # [B, 256, 4, 4]
        y = self.emo_fc_2(y.mean((2, 3)))  # [B, E + 2]
        return EmoNetOutput(y[:, :-2], y[:, -2], y[:, -1], heatmap)


class _Block(nn.Module):
    """Run three 3 x 3 convolutions in sequence, concatenate their outputs and add the input."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, half, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(half), nn.Conv2d(half, quarter, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(quarter), nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        self.downsample = None
        if channels != out_channels:
            project = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), project)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(F.relu(self.bn1(x)))
        b = self.conv2(F.relu(self.bn2(a)))
        c = self.conv3(F.relu(self.bn3(b)))
        return torch.cat([a, b, c], dim=1) + (x if self.downsample is None else self.downsample(x))


class _Hourglass(nn.Module):
    """Halve the side `depth` times and double it again, with a skip connection at every size."""

    def __init__(self, depth: int):
        super().__init__()
        self._depth = depth
        self.b2_plus_1 = _Block(_WIDTH, _WIDTH)
        for level in range(1, depth + 1):
            for name in ("b1", "b2", "b3"):
                self.add_module(f"{name}_{level}", _Block(_WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self._level(self._depth, x)

    def _level(self, level: int, x: Tensor) -> Tensor:
        """Run the hourglass at one level and, inside it, at all lower levels."""
        block = self.get_submodule
        low = block(f"b2_{level}")(F.max_pool2d(x, 2))
        low = self._level(level - 1, low) if level > 1 else self.b2_plus_1(low)
        low = block(f"b3_{level}")(low)
        return block(f"b1_{level}")(x) + F.interpolate(low, scale_factor=2, mode="nearest")


class EmoNetVectors:
    """Use EMONet as an `EmotionModel`: softmax of the expressions, then valence and arousal, [B, E + 2]."""

    def __init__(self, model: EmoNet):
        self._model, self.weights = model.eval(), model.weights

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        out = self._model(pictures.to(self._model.conv1.weight.device))
        affect = torch.stack([out.valence, out.arousal], dim=1).clamp(-1, 1)
        return torch.cat([out.expression.softmax(1), affect], dim=1).cpu()


def load_emonet(path: str | Path, *, device: torch.device | str = "cpu") -> EmoNet:
    """Load EMONet from a published state dict with five or eight expressions.

    Names may start with `module.`, as DataParallel saves them. Every parameter must exist. Other entries of the file
    are ignored, as in EMONet's own code, and `weights` gives their number.

    Raises:
        ValueError: The file does not exist or is not a state dict of tensors, or parameters are missing or have other
            shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weights (EMONet's emonet_8.pth or emonet_5.pth)")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle may raise any exception.
    except Exception as error:
        raise ValueError(f"{path}: not a PyTorch state dict ({first_line(error)})") from error
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise ValueError(f"{path}: not a state dict of tensors, it holds a {type(saved).__name__}")
    state = {str(name).replace("module.", ""): value for name, value in saved.items()}
    last = state.get("emo_fc_2.3.weight")
    if last is None or last.dim() != 2 or len(last) < 3:
        raise ValueError(f"{path}: not EMONet's parameters, emo_fc_2.3.weight must be [E + 2, 128]")
    model = EmoNet(expressions=len(last) - 2)
    # Only newer versions of PyTorch count batches, and only training uses the count.
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    missing = sorted(wanted - state.keys())
    if missing:
        raise ValueError(f"{path}: {len(missing)} of EMONet's parameters are missing, {missing[0]} first")
    unused = sum(name not in model.state_dict() for name in state)
    try:
        model.load_state_dict({name: state[name] for name in wanted}, strict=False)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: parameters of other shapes than EMONet's ({cause})") from error
    model.weights = f"EMONet, {described(path)}" + (f", {unused} further entries unused" if unused else "")
    return model.eval().requires_grad_(False).to(device)


def emotion_picture(frame: np.ndarray, face: Face) -> np.ndarray:
    """Cut the square that EMONet sees out of a frame uint8 [H, W, 3]: uint8 [256, 256, 3]."""
    points = face.points[[*_BROWS, *_RIM], :2]
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(round(float((high - low).sum()) / 1.1), 1)
    left, top = ((low + high) / 2 - side / 2).round().astype(int).tolist()
    return CropBox(left=left, top=top, side=side).cut(frame, SIDE_PX)


def emotion_vectors(
    model: EmotionModel, frames: Iterable[tuple[np.ndarray, Face | None]], *, batch_frames: int = 8
) -> np.ndarray:
    """Compute the emotion vectors of a video's frames: float32 [T, K], NaN for a frame without a face.

    Args:
        model: Maps pictures to vectors.
        frames: Frames uint8 [H, W, 3] with their faces.
        batch_frames: Number of frames that are computed together.

    Raises:
        ValueError: There are no frames, or none with a face.
    """
    if batch_frames < 1:
        raise ValueError(f"batch_frames must be >= 1, got {batch_frames}")
    rows: list[np.ndarray | None] = []
    stream = (None if face is None else emotion_picture(frame, face) for frame, face in frames)
    while batch := list(islice(stream, batch_frames)):
        pictures = [picture for picture in batch if picture is not None]
        vectors = iter(())
        if pictures:
            x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255  # [n, 3, 256, 256]
            vectors = iter(model(x).numpy())
        # Only frames with a face have a vector. Put None in the other frames' places.
        rows += [None if picture is None else next(vectors) for picture in batch]
    first = next((row for row in rows if row is not None), None)
    if first is None:
        raise ValueError(f"no face in any of the video's {len(rows)} frames")
    return np.stack([np.full_like(first, np.nan) if row is None else row for row in rows])


def emotion_difference(made: np.ndarray, true: np.ndarray, *, weights: str) -> Score:
    """Compute DEmo of one generated video.

    `count` of the score is the number of frames in which both videos show a face.

    Args:
        made: Emotion vectors of the generated video, [T, K].
        true: Emotion vectors of the true video, [T, K].
        weights: Name of the weights of the model that computed the vectors.

    Raises:
        ValueError: The shapes differ, or there is no frame in which both videos show a face.
    """
    if made.shape != true.shape or made.ndim != 2:
        raise ValueError(
            "emotion vectors of both videos must be [T, K] alike, "
            f"got {list(made.shape)} generated and {list(true.shape)} true"
        )
    difference = np.abs(made.astype(np.float64) - true).sum(axis=1)  # [T]
    both_show_face = np.isfinite(difference)  # [T]
    frames, counted = len(both_show_face), int(both_show_face.sum())
    if not counted:
        raise ValueError(f"in none of {frames} frames do both videos show a face")
    excluded = frames - counted
    note = f"{excluded} of {frames} frames without a face excluded" if excluded else ""
    value = float(difference[both_show_face].mean())
    return Score(value=value, count=counted, weights=weights, note=note)
