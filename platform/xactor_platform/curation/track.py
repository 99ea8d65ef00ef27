"""Follow the main face of a piece, and divide the piece into clips in which the face stays within one square."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from xactor.faces import CropBox, Face, FaceLandmarker, control_track, crop_box
from xactor.faces.landmarks import landmark_track
from xactor.media import read_span
from xactor.portrait import search_faces
from xactor.rates import FPS
from xactor_platform.curation.curation_config import SHORTEST_S
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.messages import Clip, Piece
from xactor_platform.curation.scan import MIN_FRAMES
from xactor_platform.curation.video_files import open_video

# Longest side, in pixels, of the pictures in which faces are found. The landmark model sees 256 px, so larger pictures
# show it no more detail.
_LONGEST_PX = 960
# Side of the square that is searched while a face is followed, as a multiple of the face's box.
_SQUARE_OF_BOX = 2.6
# While no face is found, every fifth frame is searched.
_SEARCH_EVERY = 5
# Longest gap without a face that is interpolated, in frames.
_MAX_GAP = 5
# Smallest intersection over union of the boxes of one face in two successive frames.
_MIN_OVERLAP = 0.4
# Numbers, in MediaPipe's face mesh, of the eyes' outer corners and of the base of the nose.
_POINTS = (33, 263, 2)

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Track(CurationStage):
    """Follow the main face of a piece, a part of a video, and divide the piece into clips."""

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
    """Follow the main face of a piece of a video.

    The function searches the whole picture for faces and, if it finds none, crops of the picture, which show small
    faces larger. It then follows the main face within a square around this face, so that other faces may come and go.

    Args:
        frames: frames of the piece, uint8 [H, W, 3].
        landmarker: model that follows one face.
        searcher: model that finds several faces.
        hint: box of the main face as fractions of the picture, if the dataset states it.
        width: width of the video, in pixels.

    Returns:
        The face in each frame (None where there is none), and the number of pixels of the video per pixel of a frame.
    """
    faces: list[Face | None] = []
    # `last` is the face in the last frame, `unseen` the number of successive frames without a face.
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
        unseen = 0
        square = _square_around(last)
        # This loop takes the next frames from the same iterator as the outer loop.
        for face in _follow_in_square(chain([frame], frames), square, landmarker):
            faces.append(face)
            if face is None or not _well_inside(face, square):
                break
        # The next square lies around this face. If the face is lost, the next frame is searched for faces.
        last = faces[-1]
    return faces, scale


def clips_of(faces: Sequence[Face | None], scale: float, first: int) -> Iterator[Clip]:
    """Yield the clips of a piece. If the piece has none, yield one dropped clip of its whole length with the reason.

    Args:
        faces: the face in each frame, None where there is none.
        scale: number of pixels of the video per pixel of the frames in which the faces were found.
        first: first frame of the piece.
    """
    runs = list(_steady_runs(faces))
    seen = sum(face is not None for face in faces)
    whole = Clip(first=first, end=first + max(len(faces), 1))
    if not runs:
        found = f"a face in {seen} of {len(faces)} frames"
        if seen < MIN_FRAMES:
            yield whole.dropped("no_face", found)
        else:
            yield whole.dropped("unsteady", f"{found}, never the same face for {SHORTEST_S:g} s in one place")
        return
    for start, end in runs:
        numbers = [n for n in range(start, end) if faces[n] is not None]
        found_faces = [face for face in faces[start:end] if face is not None]
        found_square = crop_box(found_faces)
        square = found_square.scaled(scale)
        boxes = np.array([face.box for face in found_faces]) * scale
        points = np.array([face.points[list(_POINTS), :2] for face in found_faces]) * scale
        flat_points = points.reshape(len(found_faces), -1)
        yield Clip(
            first=first + start,
            end=first + end,
            box=square,
            faces=_interpolate(boxes, numbers, start, end),
            points=_interpolate(flat_points, numbers, start, end).reshape(end - start, len(_POINTS), 2),
            controls=control_track(faces[start:end], max_gap_frames=_MAX_GAP),
            landmarks=landmark_track(faces[start:end], found_square),
        )


def _steady_runs(faces: Sequence[Face | None]) -> Iterator[tuple[int, int]]:
    """Yield runs (start, end) of at least a second in which the same face is visible and stays within one square."""
    # First frame of the current run, None between runs.
    start: int | None = None
    # The most recent frame with a face.
    last = -1
    # The added None ends the last run.
    for n, face in enumerate([*faces, None]):
        if face is None:
            at_end = n == len(faces)
            if start is not None and (at_end or n - last > _MAX_GAP):
                yield from _runs_within_square(faces, start, last + 1)
                start = None
            continue
        previous = faces[last] if start is not None else None
        if start is None:
            start = n
        elif previous is not None and _overlap(previous.box, face.box) < _MIN_OVERLAP:
            # This is another face.
            yield from _runs_within_square(faces, start, last + 1)
            start = n
        last = n


def _runs_within_square(faces: Sequence[Face | None], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the run (start, end) if its face stays within one square. Otherwise do the same with each half of the run.

    Runs of less than a second are left out.
    """
    if end - start < MIN_FRAMES:
        return
    found_faces = [face for face in faces[start:end] if face is not None]
    square = crop_box(found_faces)
    left, top, right, bottom = np.array([face.box for face in found_faces]).T
    inside = (left >= square.left) & (right <= square.left + square.side)
    inside &= (top >= square.top) & (bottom <= square.top + square.side)
    # Ours: a few frames of a fast movement may leave the square.
    if inside.mean() >= 0.98:
        yield start, end
        return
    middle = (start + end) // 2
    yield from _runs_within_square(faces, start, middle)
    yield from _runs_within_square(faces, middle, end)


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


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _interpolate(rows: np.ndarray, numbers: list[int], start: int, end: int) -> np.ndarray:
    """Interpolate rows linearly to every frame from `start` up to `end`, float32 [end - start, columns].

    Args:
        rows: rows of some of the frames, [len(numbers), columns].
        numbers: number of the frame of each row.
        start: first frame.
        end: frame after the last one.
    """
    frames = np.arange(start, end)
    return np.stack([np.interp(frames, numbers, column) for column in rows.T], axis=1).astype(np.float32)


def _hint(piece: Piece) -> Box | None:
    """Return the face's box that the dataset states for the segment with the piece, None if it states none."""
    for segment in piece.video.segments:
        # One frame more on both sides, because the borders of pieces are rounded to frames.
        if segment.start_s * FPS - 1 <= piece.first and piece.end <= segment.end_s * FPS + 1:
            return segment.box
    return None
