"""The frame of a video that makes the best portrait."""

from itertools import islice
from pathlib import Path

import numpy as np

from xactor.controls import BLENDSHAPES
from xactor.faces import Face, FaceLandmarker

# Ours: so often, and so much of a video, is looked at.
_FPS = 2
_MOST_FRAMES = 120
_EYES = [BLENDSHAPES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]
_JAW = BLENDSHAPES.index("jawOpen")


def best_still(video: str | Path, landmarker: FaceLandmarker | None = None) -> np.ndarray:
    """The frame with the largest, sharpest face that looks ahead, eyes open and mouth closed: uint8 [H, W, 3] RGB.

    Two frames a second of the first minute are looked at.

    Raises:
        ValueError: it cannot be decoded, or none of them shows a face.
    """
    from xactor.media import read_frames

    landmarker = landmarker or FaceLandmarker(most_faces=5)
    best: tuple[float, np.ndarray] | None = None
    seen = 0
    for picture in islice(read_frames(video, _FPS), _MOST_FRAMES):
        seen += 1
        for face in landmarker.detect(picture)[:1]:
            score = portrait_score(face, picture)
            if best is None or score > best[0]:
                best = score, picture
    if best is None:
        raise ValueError(f"{video}: no face is found in {seen} frames of it, {_FPS} a second")
    return best[1]


def portrait_score(face: Face, picture: np.ndarray) -> float:
    """How good a portrait a frame is. Ours: a product, so that what one lacks the others do not make up for."""
    left, top, right, bottom = (round(edge) for edge in face.box)
    height, width = picture.shape[:2]
    inside = picture[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)].mean(axis=2)
    if min(inside.shape) < 4:
        return 0.0
    # Of neighbours' differences, in grey levels; a face out of focus or in motion has about half of a sharp one's.
    detail = np.abs(np.diff(inside, axis=0)).mean() + np.abs(np.diff(inside, axis=1)).mean()
    ahead = max(float(face.matrix[2, 2] / np.linalg.norm(face.matrix[:3, 2])), 0.0)  # cosine to the camera
    open_eyes = 1 - face.blendshapes[_EYES].max()
    closed_mouth = (1 - face.blendshapes[_JAW]) ** 3
    return float(np.sqrt(face.area) * detail * ahead**4 * open_eyes * closed_mouth)
