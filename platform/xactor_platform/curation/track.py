"""Follow the main face of a piece, and cut it into clips in which the face stays within one square."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from xactor.faces import CropBox, Face, FaceLandmarker, crop_box
from xactor.media import read_span
from xactor.portrait import search_faces
from xactor.rates import FPS
from xactor_platform.curation.curation_config import SHORTEST_S
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.messages import Clip, Piece
from xactor_platform.curation.scan import MIN_FRAMES
from xactor_platform.curation.video_files import open_video

# Longest side of the pictures. The landmark model sees 256 px, so larger pictures show it no more detail.
_LONGEST_PX = 960
# Side of the square that is searched while a face is followed, in sizes of the face's box.
_ROOM = 2.6
# Frames between two searches while no face is found.
_SEARCH_EVERY = 5
# Most frames without a face that are interpolated.
_MAX_GAP = 5
# Smallest intersection over union of a face with itself one frame later.
_MIN_OVERLAP = 0.4
# Landmarks of the eyes' outer corners and of the base of the nose.
_POINTS = (33, 263, 2)

Box = tuple[float, float, float, float]


class Track(CurationStage):
    """Follow the main face of a piece."""

    name = "track"

    @staticmethod
    def make() -> Callable[[Piece], list[Piece]]:
        landmarker, searcher = FaceLandmarker(max_faces=1), FaceLandmarker(max_faces=4)

        def track(piece: Piece) -> list[Piece]:
            if piece.clips:
                return [piece]
            with open_video(piece.video.uri) as source:
                frames = read_span(source, piece.first, piece.end, max_px=_LONGEST_PX)
                faces, scale = follow(frames, landmarker, searcher, _hint(piece), piece.facts.width)
            return [replace(piece, clips=tuple(clips_of(faces, scale, piece.first)))]

        return track


def follow(
    frames: Iterator[np.ndarray],
    landmarker: FaceLandmarker,
    searcher: FaceLandmarker,
    hint: Box | None,
    width: int,
) -> tuple[list[Face | None], float]:
    """Follow the main face.

    A face is searched in the whole picture, and in crops of it where it is small. It is then followed in a square
    around it, so that other faces may come and go.

    Args:
        frames: uint8 [H, W, 3].
        landmarker: follows one face.
        searcher: finds several faces.
        hint: place of the main face as fractions of the picture, if the dataset states it.
        width: of the video, in pixels.

    Returns:
        The face in each frame, None where there is none, and the pixels of the video for each pixel of a frame.
    """
    faces: list[Face | None] = []
    scale, last, unseen = 1.0, None, 0
    for frame in frames:
        scale = width / frame.shape[1]
        if last is None:
            if unseen % _SEARCH_EVERY == 0:
                last = _main_face(search_faces(frame, searcher), frame, hint)
            if last is None:
                faces.append(None)
                unseen += 1
                continue
        unseen, lost = 0, False
        square = _square_around(last)
        for face in _follow_in_square(chain([frame], frames), square, landmarker):
            faces.append(face)
            lost = face is None
            if face is None or not _well_inside(face, square):
                break
            last = face
        last = None if lost or faces[-1] is None else faces[-1]
    return faces, scale


def clips_of(faces: Sequence[Face | None], scale: float, first: int) -> Iterator[Clip]:
    """Yield the clips of a piece, or one dropped clip that states why there are none.

    Args:
        faces: in each frame, None where there is none.
        scale: pixels of the video for each pixel of the faces.
        first: first frame of the piece.
    """
    runs = list(_steady(faces))
    seen = sum(face is not None for face in faces)
    none = Clip(first=first, end=first + max(len(faces), 1))
    if not runs:
        found = f"a face in {seen} of {len(faces)} frames"
        if seen < MIN_FRAMES:
            yield none.dropped("no_face", found)
        else:
            yield none.dropped("unsteady", f"{found}, never the same for {SHORTEST_S:g} s in one place")
        return
    for a, b in runs:
        known = [n for n in range(a, b) if faces[n] is not None]
        some = [face for n in known if (face := faces[n]) is not None]
        square = crop_box(some).scaled(scale)
        boxes = _interpolate(np.array([face.box for face in some]) * scale, known, a, b)
        points = np.array([face.points[list(_POINTS), :2] for face in some]).reshape(len(some), -1) * scale
        yield Clip(
            first=first + a,
            end=first + b,
            box=square,
            faces=boxes,
            points=_interpolate(points, known, a, b).reshape(b - a, len(_POINTS), 2),
        )


def _steady(faces: Sequence[Face | None]) -> Iterator[tuple[int, int]]:
    """Yield runs of at least a second in which the same face is visible and stays within one square."""
    start, last = None, -1
    for n, face in enumerate([*faces, None]):
        ended = n == len(faces)
        if face is not None:
            before = faces[last] if start is not None else None
            if before is not None and _overlap(before.box, face.box) < _MIN_OVERLAP:
                yield from _within_square(faces, start or 0, last + 1)
                start = n
            start = n if start is None else start
            last = n
        elif start is not None and (ended or n - last > _MAX_GAP):
            yield from _within_square(faces, start, last + 1)
            start = None


def _within_square(faces: Sequence[Face | None], a: int, b: int) -> Iterator[tuple[int, int]]:
    """Yield a run, halved until its face stays within its square, without halves shorter than a second."""
    if b - a < MIN_FRAMES:
        return
    some = [face for face in faces[a:b] if face is not None]
    square = crop_box(some)
    left, top, right, bottom = np.array([face.box for face in some]).T
    inside = (left >= square.left) & (right <= square.left + square.side)
    inside &= (top >= square.top) & (bottom <= square.top + square.side)
    if inside.mean() >= 0.98:
        yield a, b
        return
    middle = (a + b) // 2
    yield from _within_square(faces, a, middle)
    yield from _within_square(faces, middle, b)


def _follow_in_square(
    frames: Iterable[np.ndarray], square: CropBox, landmarker: FaceLandmarker
) -> Iterator[Face | None]:
    """Yield the face within a square of each frame, in the frame's pixels. Take no frame ahead."""
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
    """Return the largest of the faces whose middle is in the hint's box, else the largest of all."""
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


def _square_around(face: Face) -> CropBox:
    """Return the square that is searched for a face in the next frames."""
    left, top, right, bottom = face.box
    side = _ROOM * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _well_inside(face: Face, square: CropBox) -> bool:
    """Tell whether a face has room to move within the square, and fills enough of it."""
    left, top, right, bottom = face.box
    room = 0.05 * square.side
    inside = left > square.left + room and right < square.left + square.side - room
    inside = inside and top > square.top + room and bottom < square.top + square.side - room
    return inside and max(right - left, bottom - top) > square.side / _ROOM / 2


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _interpolate(rows: np.ndarray, known: list[int], a: int, b: int) -> np.ndarray:
    """Interpolate rows of known frames to frames a..b, float32 [b - a, columns]."""
    frames = np.arange(a, b)
    return np.stack([np.interp(frames, known, column) for column in rows.T], axis=1).astype(np.float32)


def _hint(piece: Piece) -> Box | None:
    """Return the face's place that the dataset states for the piece's segment."""
    for segment in piece.video.segments:
        if segment.start_s * FPS - 1 <= piece.first and piece.end <= segment.end_s * FPS + 1:
            return segment.box
    return None
