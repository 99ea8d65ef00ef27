"""Compute Glo and Exp, the movement of the head and of the upper face (Paper 4.2, after Loopy, Jiang et al. 2024).

Protocol. The paper defines the two as the variance of key points in the nose, and in the upper face without the mouth.
The paper publishes no code and gives no scale. Ours: MediaPipe's 478 landmarks of every frame, in units of the clip's
median distance between the outer eye corners. Glo is the variance over time of a nose landmark's position in the
picture, summed over x and y and averaged over the landmarks of the nose. For Exp each frame's face is first aligned to
the clip's mean face by the similarity transform (Umeyama 1991) that fits its rigid landmarks best. This removes the
head's rotation, position and size. Exp is then the same variance, averaged over the landmarks of brows and eyelids.
DGlo and DExp are the absolute differences between the values of the generated and of the true video.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xactor.faces import Face

EYE_CORNERS = (33, 263)
NOSE = (1, 2, 4, 5, 6, 98, 168, 195, 197, 327)
UPPER_FACE = (
    # Both brows.
    *(46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 276, 282, 283, 285, 293, 295, 296, 300, 334, 336),
    # Eyelids of the right eye.
    *(7, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 246),
    # Eyelids of the left eye.
    *(249, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 466),
)
# Landmarks that expressions hardly move: nose, eye corners, temples and the top of the forehead.
RIGID = (*NOSE, 33, 133, 362, 263, 10, 127, 234, 356, 454)


@dataclass(frozen=True, kw_only=True)
class Expressiveness:
    """Hold Glo and Exp of one video."""

    glo: float
    """Movement of the head, in squared distances between the outer eye corners."""
    exp: float
    """Movement of the upper face, in squared distances between the outer eye corners."""
    frames: int
    """Number of frames with a face."""


def expressiveness(faces: Sequence[Face | None]) -> Expressiveness:
    """Compute Glo and Exp of a video from the faces of its frames, as `FaceLandmarker.follow` yields them.

    Raises:
        ValueError: Fewer than two frames show a face.
    """
    points = [face.points for face in faces if face is not None]
    if len(points) < 2:
        raise ValueError(f"a face must be in at least 2 frames, got {len(points)} of {len(faces)}")
    return of_points(np.stack(points).astype(np.float64))


def of_points(points: np.ndarray) -> Expressiveness:
    """Compute Glo and Exp from landmarks float64 [T, 478, 3] in pixels, T >= 2."""
    right, left = (points[:, corner] for corner in EYE_CORNERS)
    points = points / np.median(np.linalg.norm(left - right, axis=1))
    steady = _aligned_to_mean(points)
    return Expressiveness(
        glo=float(points[:, NOSE, :2].var(0).sum(-1).mean()),
        exp=float(steady[:, UPPER_FACE, :2].var(0).sum(-1).mean()),
        frames=len(points),
    )


def _aligned_to_mean(points: np.ndarray) -> np.ndarray:
    """Align faces [T, N, 3] to their mean by their rigid landmarks. Return the aligned faces [T, N, 3]."""
    aligned = _aligned(points, points[0])
    # The mean of the aligned faces is a better target than the first face.
    for _ in range(2):
        aligned = _aligned(points, aligned.mean(0))
    return aligned


def _aligned(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Align each of the faces [T, N, 3] to a target face [N, 3] by Umeyama's closed form on the rigid landmarks."""
    own, wanted = points[:, RIGID], target[list(RIGID)]  # [T, R, 3], [R, 3]
    own_centre, wanted_centre = own.mean(1, keepdims=True), wanted.mean(0)
    own, wanted = own - own_centre, wanted - wanted_centre
    u, sizes, vt = np.linalg.svd(np.swapaxes(own, 1, 2) @ wanted)  # [T, 3, 3]
    # If the best fit is a mirror image, a negative last sign replaces it by the best rotation.
    signs = np.ones_like(sizes)  # [T, 3]
    signs[:, -1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * signs[:, None, :]) @ vt
    scale = (sizes * signs).sum(-1) / np.square(own).sum((1, 2))
    return scale[:, None, None] * (points - own_centre) @ rotation + wanted_centre
