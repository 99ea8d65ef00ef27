"""The faces of a piece to clips: in each one face, followed without a break, that stays within one square."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from xactor.faces import CropBox, Face, FaceLandmarker, crop_box
from xactor.media import read_span
from xactor.portrait import search_faces
from xactor.rates import FPS
from xactor_platform.curation.config import SHORTEST_S
from xactor_platform.curation.files import open_video
from xactor_platform.curation.scan import LEAST_FRAMES
from xactor_platform.curation.stage import Stage
from xactor_platform.curation.work import Clip, Piece

# A landmark model sees a picture in 256 px: more than this shows it no more, and small faces are searched in parts.
_LONGEST_PX = 960
_ROOM = 2.6  # what is looked at while following, in sizes of the face's box
_SEARCH_EVERY = 5  # frames, where no face is found
_BRIDGED = 5  # frames without a face that are bridged by straight lines
_LEAST_OVERLAP = 0.4  # of a face with itself a frame later, as intersection over union
_POINTS = (33, 263, 2)  # the eyes' outer corners, and below the nose

Box = tuple[float, float, float, float]


class Track(Stage):
    name = "track"

    @staticmethod
    def make() -> Callable[[Piece], list[Piece]]:
        landmarker, searcher = FaceLandmarker(most_faces=1), FaceLandmarker(most_faces=4)

        def track(piece: Piece) -> list[Piece]:
            if piece.clips:
                return [piece]
            with open_video(piece.video.uri) as source:
                frames = read_span(source, piece.first, piece.end, longest_px=_LONGEST_PX)
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
    """The main face in each frame, None where there is none; and how many pixels of the video a frame's pixel is.

    A face is searched in all of a picture, in parts of it where it is small, and then followed in a square around it:
    so the same face is followed while others come and go.

    Args:
        searcher: finds several faces. hint: where in the picture (0..1) the one that is meant is.
        width: of the video.
    """
    faces: list[Face | None] = []
    scale, last, unseen = 1.0, None, 0
    for frame in frames:
        scale = width / frame.shape[1]
        if last is None:
            if unseen % _SEARCH_EVERY == 0:
                last = _chosen(search_faces(frame, searcher), frame, hint)
            if last is None:
                faces.append(None)
                unseen += 1
                continue
        unseen, lost = 0, False
        square = _around(last)
        for face in _followed(chain([frame], frames), square, landmarker):
            faces.append(face)
            lost = face is None
            if face is None or not _well_inside(face, square):
                break
            last = face
        last = None if lost or faces[-1] is None else faces[-1]
    return faces, scale


def clips_of(faces: Sequence[Face | None], scale: float, first: int) -> Iterator[Clip]:
    """The clips in a piece, or one that says why there are none.

    Args:
        scale: of the faces' pixels to the video's. first: the piece's first frame.
    """
    runs = list(_steady(faces))
    seen = sum(face is not None for face in faces)
    none = Clip(first=first, end=first + max(len(faces), 1))
    if not runs:
        part = f"a face in {seen} of {len(faces)} frames"
        if seen < LEAST_FRAMES:
            yield none.dropped("no_face", part)
        else:
            yield none.dropped("unsteady", f"{part}, never the same for {SHORTEST_S:g} s in one place")
        return
    for a, b in runs:
        known = [n for n in range(a, b) if faces[n] is not None]
        some = [face for n in known if (face := faces[n]) is not None]
        square = crop_box(some).scaled(scale)
        boxes = _filled(np.array([face.box for face in some]) * scale, known, a, b)
        points = np.array([face.points[list(_POINTS), :2] for face in some]).reshape(len(some), -1) * scale
        yield Clip(
            first=first + a,
            end=first + b,
            box=square,
            faces=boxes,
            points=_filled(points, known, a, b).reshape(b - a, len(_POINTS), 2),
        )


def _steady(faces: Sequence[Face | None]) -> Iterator[tuple[int, int]]:
    """Runs of at least a second in which one face is seen all along and stays within one square."""
    start, last = None, -1
    for n, face in enumerate([*faces, None]):
        ended = n == len(faces)
        if face is not None:
            before = faces[last] if start is not None else None
            if before is not None and _overlap(before.box, face.box) < _LEAST_OVERLAP:
                yield from _within_square(faces, start or 0, last + 1)
                start = n
            start = n if start is None else start
            last = n
        elif start is not None and (ended or n - last > _BRIDGED):
            yield from _within_square(faces, start, last + 1)
            start = None


def _within_square(faces: Sequence[Face | None], a: int, b: int) -> Iterator[tuple[int, int]]:
    """A run, halved until its face stays within its square; what is shorter than a second then is left out."""
    if b - a < LEAST_FRAMES:
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


def _followed(
    frames: Iterable[np.ndarray], square: CropBox, landmarker: FaceLandmarker
) -> Iterator[Face | None]:
    """The face within a square of each frame, in the frame's pixels. Takes no frame before it is asked for."""
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


def _chosen(faces: list[Face], frame: np.ndarray, hint: Box | None) -> Face | None:
    """The largest face; of those whose middle is where it is meant to be, if there are any."""
    if hint:
        height, width = frame.shape[:2]
        left, top, right, bottom = hint
        meant = [
            face
            for face in faces
            if left <= (face.box[0] + face.box[2]) / 2 / width <= right
            and top <= (face.box[1] + face.box[3]) / 2 / height <= bottom
        ]
        faces = meant or faces
    return faces[0] if faces else None


def _around(face: Face) -> CropBox:
    left, top, right, bottom = face.box
    side = _ROOM * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _well_inside(face: Face, square: CropBox) -> bool:
    """Whether a face can move on within a square that is followed, and fills enough of it."""
    left, top, right, bottom = face.box
    room = 0.05 * square.side
    inside = left > square.left + room and right < square.left + square.side - room
    inside = inside and top > square.top + room and bottom < square.top + square.side - room
    return inside and max(right - left, bottom - top) > square.side / _ROOM / 2


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _filled(rows: np.ndarray, known: list[int], a: int, b: int) -> np.ndarray:
    """Rows of known frames to one for each of a..b, float32."""
    frames = np.arange(a, b)
    return np.stack([np.interp(frames, known, column) for column in rows.T], axis=1).astype(np.float32)


def _hint(piece: Piece) -> Box | None:
    """Where the face is, in the segment that the piece is of."""
    for segment in piece.video.segments:
        if segment.start_s * FPS - 1 <= piece.first and piece.end <= segment.end_s * FPS + 1:
            return segment.box
    return None
