"""Follow the main face of a piece, and divide the piece into clips in which the face stays within one square."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from xactor.faces import Face, FaceFollower, control_track, crop_box
from xactor.faces.follower import Box
from xactor.faces.landmarks import landmark_track
from xactor.media import read_span
from xactor.rates import FPS
from xactor_platform.curation.curation_config import SHORTEST_S
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.messages import Clip, Piece
from xactor_platform.curation.scan import MIN_FRAMES
from xactor_platform.curation.video_files import open_video

# Longest side, in pixels, of the pictures in which faces are found. The landmark model sees 256 px, so larger pictures
# show it no more detail.
_LONGEST_PX = 960
# Longest gap without a face that is interpolated, in frames.
_MAX_GAP = 5
# Smallest intersection over union of the boxes of one face in two successive frames.
_MIN_OVERLAP = 0.4
# Numbers, in MediaPipe's face mesh, of the eyes' outer corners and of the base of the nose.
_POINTS = (33, 263, 2)


class Track(CurationStage):
    """Follow the main face of a piece, a part of a video, and divide the piece into clips."""

    name = "track"

    @staticmethod
    def make(*, landmarks: str | None = None) -> Callable[[Piece], list[Piece]]:
        follower = FaceFollower(landmarks)

        def track(piece: Piece) -> list[Piece]:
            if piece.clips:
                return [piece]
            faces: list[Face | None] = []
            with open_video(piece.video.uri) as source:
                frames = read_span(source, piece.first, piece.end, max_px=_LONGEST_PX)
                if (frame := next(frames, None)) is not None:
                    # Faces are found in reduced pictures. Later stages need them in pixels of the video.
                    scale = piece.facts.width / frame.shape[1]
                    found = follower.follow(chain([frame], frames), _hint(piece))
                    faces = [face and face.scaled(scale) for face in found]
            size = piece.facts.height, piece.facts.width
            return [replace(piece, clips=tuple(clips_of(faces, size, piece.first)))]

        return track


def clips_of(faces: Sequence[Face | None], size: tuple[int, int], first: int) -> Iterator[Clip]:
    """Yield the clips of a piece. If the piece has none, yield one dropped clip of its whole length with the reason.

    Args:
        faces: the face in each frame, in pixels of the video, None where there is none.
        size: height and width of the video's pictures, in pixels.
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
        square = crop_box(found_faces)
        # Pixels outside the picture would be invented, and models would learn them. So move the square inside.
        box = square.inside(*size)
        boxes = np.array([face.box for face in found_faces])
        points = np.array([face.points[list(_POINTS), :2] for face in found_faces])
        flat_points = points.reshape(len(found_faces), -1)
        yield Clip(
            first=first + start,
            end=first + end,
            box=box,
            outside=round(square.outside(*size), 4),
            faces=_interpolate(boxes, numbers, start, end),
            points=_interpolate(flat_points, numbers, start, end).reshape(end - start, len(_POINTS), 2),
            controls=control_track(faces[start:end], max_gap_frames=_MAX_GAP),
            landmarks=landmark_track(faces[start:end], box),
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
