"""Choose the frame of a video that makes the best portrait."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from xactor.controls import BLENDSHAPES
from xactor.faces import Face, FaceLandmarker, search_faces

# Ours: frames per second of a video that are searched, and their maximum number.
_FPS = 2
_MAX_FRAMES = 120
# If no face is found, squares of every tenth of these frames are searched, which takes about a second per frame.
_SEARCH_SQUARES_EVERY = 10
_EYE_BLINKS = [BLENDSHAPES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]
_JAW_OPEN = BLENDSHAPES.index("jawOpen")


def best_still(video: str | Path, landmarker: FaceLandmarker | None = None) -> np.ndarray:
    """Return the frame that scores best as a portrait.

    A good portrait is a large, sharp face that is turned to the camera, with open eyes and a closed mouth. Two
    frames per second of the first minute are searched. If none of them shows a face, squares of a tenth of them are
    searched, which show small faces larger.

    Args:
        video: The file.
        landmarker: Finds faces; None means a new one.

    Returns:
        The frame, uint8 [H, W, 3] RGB.

    Raises:
        ValueError: The file cannot be decoded, or no searched frame shows a face.
    """
    landmarker = landmarker or FaceLandmarker(max_faces=5)
    still = _best_frame(video, landmarker.detect, every=1)
    if still is None:
        still = _best_frame(video, lambda picture: search_faces(picture, landmarker), _SEARCH_SQUARES_EVERY)
    if still is None:
        seconds = _MAX_FRAMES // _FPS
        raise ValueError(f"{video}: no face is found in {_FPS} frames per second of the first {seconds} s")
    return still


def _best_frame(
    video: str | Path, find_faces: Callable[[np.ndarray], list[Face]], every: int
) -> np.ndarray | None:
    """Return the frame with the best score as a portrait, None if no face is found.

    Args:
        video: The file.
        find_faces: Returns the faces in a picture, the largest first.
        every: Look only at every n-th of the searched frames.
    """
    from xactor.media import read_frames

    best: tuple[float, np.ndarray] | None = None
    for picture in islice(read_frames(video, _FPS), 0, _MAX_FRAMES, every):
        # The largest face, if there is one.
        for face in find_faces(picture)[:1]:
            score = portrait_score(face, picture)
            if best is None or score > best[0]:
                best = score, picture
    return best[1] if best else None


def portrait_score(face: Face, picture: np.ndarray) -> float:
    """Score a frame as a portrait, from 0 up; more is better.

    Ours: the score is a product, so that a good factor does not compensate for a bad one.
    """
    left, top, right, bottom = (round(edge) for edge in face.box)
    height, width = picture.shape[:2]
    grey = picture[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)].mean(axis=2)
    # Too little of the face is inside the picture.
    if min(grey.shape) < 4:
        return 0.0
    # Mean difference of neighbouring pixels in grey levels. A blurred face has about half the detail of a sharp one.
    detail = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    # Cosine of the angle between the face's direction and the camera's.
    ahead = max(float(face.matrix[2, 2] / np.linalg.norm(face.matrix[:3, 2])), 0.0)
    open_eyes = 1 - face.blendshapes[_EYE_BLINKS].max()
    closed_mouth = (1 - face.blendshapes[_JAW_OPEN]) ** 3
    return float(np.sqrt(face.area) * detail * ahead**4 * open_eyes * closed_mouth)
