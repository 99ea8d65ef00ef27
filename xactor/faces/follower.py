"""Search a picture for faces of any size, and follow the main face of a video.

Every user of videos finds faces with these functions, so that a face that one job finds is found by all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from xactor.faces.crop import CropBox
from xactor.faces.landmarker import Face, FaceLandmarker
from xactor.rates import FPS

# The landmark model misses faces smaller than about a seventh of the picture. If it finds none in the whole picture,
# squares of the picture are searched. Their sides are these fractions of the picture's longer side.
_SQUARE_FRACTIONS = (1 / 2, 1 / 4)
# Smaller squares are not searched.
_MIN_SQUARE_PX = 96
# Maximum number of faces that the search in a video's frame finds.
_MAX_FACES = 4
# Side of the square that is searched while a face is followed, as a multiple of the face's box.
_SQUARE_OF_BOX = 2.6
# While no face is found, every fifth frame is searched.
_SEARCH_EVERY = 5

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class FaceFollower:
    """Follow the main face of a video.

    The whole picture is searched for faces and, if it shows none, squares of the picture, which show small faces
    larger. The main face is then followed within a square around it, so that other faces may come and go.

    Args:
        model: Path of another MediaPipe model, see `FaceLandmarker`.

    Raises:
        ValueError: mediapipe is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None):
        self._tracker = FaceLandmarker(model, max_faces=1)
        self._searcher = FaceLandmarker(model, max_faces=_MAX_FACES)

    def follow(self, frames: Iterable[np.ndarray], hint: Box | None = None) -> Iterator[Face | None]:
        """Yield the main face in each frame, in pixels of the frame, or None if the frame shows none.

        Args:
            frames: The video's frames at 25 fps, each uint8 [H, W, 3] RGB.
            hint: Box of the main face as fractions of the picture; None means the largest face.
        """
        frames = iter(frames)
        # `last` is the face in the last frame, `unseen` the number of successive frames without a face.
        last, unseen = None, 0
        for frame in frames:
            if last is None:
                if unseen % _SEARCH_EVERY == 0:
                    last = _main_face(search_faces(frame, self._searcher), frame, hint)
                if last is None:
                    yield None
                    unseen += 1
                    continue
            unseen = 0
            square = _square_around(last)
            # This loop takes the next frames from the same iterator as the outer loop.
            for last in _follow_in_square(chain([frame], frames), square, self._tracker):
                yield last
                # The next square lies around this face. If the face is lost, the next frame is searched for faces.
                if last is None or not _well_inside(last, square):
                    break


def search_faces(picture: np.ndarray, landmarker: FaceLandmarker) -> list[Face]:
    """Return the faces in a picture, the largest first.

    If the model finds no face in the whole picture, squares of the picture are searched, because the model misses small
    faces.
    """
    found = landmarker.detect(picture)
    for fraction in _SQUARE_FRACTIONS:
        side = round(fraction * max(picture.shape[:2]))
        if found or side < _MIN_SQUARE_PX:
            break
        for top, left in _square_corners(picture, side):
            square = np.ascontiguousarray(picture[top : top + side, left : left + side])
            shift = np.array((left, top, 0), np.float32)
            for face in landmarker.detect(square):
                face = replace(face, points=face.points + shift)
                # Squares overlap, so several may show the same face, and some may cut it off. Keep the largest.
                same_face = [
                    other for other in found if _centre_inside(face, other) or _centre_inside(other, face)
                ]
                if all(face.area > other.area for other in same_face):
                    found = [other for other in found if other not in same_face] + [face]
    return sorted(found, key=lambda face: -face.area)


def _follow_in_square(
    frames: Iterable[np.ndarray], square: CropBox, landmarker: FaceLandmarker
) -> Iterator[Face | None]:
    """Yield the face within a square of each frame, in pixels of the frame, None where there is none.

    No frame after that of the yielded face is read, so that the caller can continue in another square.
    """
    shift: np.ndarray | None = None

    def inside() -> Iterator[np.ndarray]:
        nonlocal shift
        for frame in frames:
            height, width = frame.shape[:2]
            top, left = max(square.top, 0), max(square.left, 0)
            below, right = min(square.top + square.side, height), min(square.left + square.side, width)
            shift = np.array((left, top, 0), np.float32)
            yield np.ascontiguousarray(frame[top:below, left:right])

    for face in landmarker.follow(inside(), FPS):
        assert shift is not None
        yield None if face is None else replace(face, points=face.points + shift)


def _main_face(faces: list[Face], frame: np.ndarray, hint: Box | None) -> Face | None:
    """Return the largest face whose middle lies in the hinted box. Without such a face, return the largest face of all.

    Args:
        faces: faces in the frame, the largest first.
        frame: uint8 [H, W, 3].
        hint: box as fractions of the frame.
    """
    if hint:
        height, width = frame.shape[:2]
        left, top, right, bottom = hint
        hinted = [
            face
            for face in faces
            if left <= (face.box[0] + face.box[2]) / 2 / width <= right
            and top <= (face.box[1] + face.box[3]) / 2 / height <= bottom
        ]
        faces = hinted or faces
    return faces[0] if faces else None


def _square_corners(picture: np.ndarray, side: int) -> Iterator[tuple[int, int]]:
    """Yield (top, left) of squares with a given side that cover a picture. Neighbours overlap by at least half."""
    rows, columns = (
        # First rows, and then first columns, of the squares. The last square ends at the picture's border.
        sorted({*range(0, max(length - side, 0), max(side // 2, 1)), max(length - side, 0)})
        for length in picture.shape[:2]
    )
    for top in rows:
        for left in columns:
            yield top, left


def _centre_inside(face: Face, other: Face) -> bool:
    """Return whether the centre of a face's box lies inside the other face's box."""
    left, top, right, bottom = face.box
    x, y = (left + right) / 2, (top + bottom) / 2
    left, top, right, bottom = other.box
    return left < x < right and top < y < bottom


def _square_around(face: Face) -> CropBox:
    """Return the square that is searched for a face in the next frames."""
    left, top, right, bottom = face.box
    side = _SQUARE_OF_BOX * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _well_inside(face: Face, square: CropBox) -> bool:
    """Return whether a face has room to move within the square and fills enough of the square."""
    left, top, right, bottom = face.box
    room = 0.05 * square.side
    inside = left > square.left + room and right < square.left + square.side - room
    inside = inside and top > square.top + room and bottom < square.top + square.side - room
    return inside and max(right - left, bottom - top) > square.side / _SQUARE_OF_BOX / 2
