"""Follow the main face through the shots of a video, and decide which of its frames can be dubbed."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xactor.faces import Face, FaceFollower
from xactor.faces.crop import MARGIN
from xactor.faces.landmarks import LANDMARKS
from xactor.footage.geometry import Geometry
from xactor.media.footage import Footage

# Longest side in pixels of the pictures in which faces are found. The landmark model sees 256 px, so larger pictures
# show it no more detail.
_LONGEST_PX = 960
# Ours, as all bounds here: a face is dubbed if its box is at least this large, in pixels, and if it is turned away from
# the camera by at most this angle, in degrees.
MIN_FACE_PX, MAX_ANGLE = 48, 60
# Smallest intersection over union of the boxes of one face in two successive frames.
_MIN_OVERLAP = 0.4
# A shot begins where successive thumbnails differ by at least this many levels and by this many times the usual change,
# or by the last number of levels. A gesture that is taken for a cut costs nothing: the face is searched again.
_MIN_CHANGE, _MIN_RATIO, _ALWAYS_CUT, _NEARBY_FRAMES, _THUMBNAIL_PX = 6.0, 5.0, 40.0, 8, 64
# Number of frames over which motion begins and ends next to frames that are not dubbed.
_FADE_FRAMES = 5
# Standard deviation in frames of the smoothing of the crop's centre and side.
_STEADY_FRAMES = 6.0


@dataclass(frozen=True, kw_only=True)
class FaceTrack:
    """Hold the main face of each of T frames. Rows of frames without a face are zero."""

    times_s: np.ndarray
    """Time of each frame, float64 [T]."""
    shots: np.ndarray
    """Number of each frame's shot, int64 [T]. A shot shows one face, or none."""
    found: np.ndarray
    """Whether a face was found, bool [T]."""
    points: np.ndarray
    """Landmarks in pixels of the upright picture, float32 [T, K, 2]; see `xactor.faces.landmarks`."""
    blendshapes: np.ndarray
    """Blendshapes, float32 [T, 51]."""
    angles: np.ndarray
    """Angle between the face and the camera's axis, in degrees, float32 [T]."""
    boxes: np.ndarray
    """Left, top, right and bottom of the face's box in pixels of the upright picture, float32 [T, 4]."""
    end_s: float
    """Time at which the last frame ends."""

    @property
    def usable(self) -> np.ndarray:
        """Return which frames show a face that is large enough and turned to the camera, bool [T]."""
        sides = np.maximum(self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1])
        return self.found & (sides >= MIN_FACE_PX) & (self.angles <= MAX_ANGLE)

    def weights(self, end_s: float = math.inf) -> np.ndarray:
        """Return how much of the new motion each frame shows, 0 to 1, float32 [T].

        Within a shot, motion fades in and out next to frames that are not dubbed. At a cut it needs no fade.

        Args:
            end_s: Frames that begin at this time or later are not dubbed.
        """
        dubbed = self.usable & (self.times_s < end_s)
        weights = dubbed.astype(np.float32)
        for start, end in self.shot_ranges():
            missing = start + np.flatnonzero(~dubbed[start:end])
            if len(missing):
                distance = np.abs(np.arange(start, end)[:, None] - missing).min(axis=1)
                weights[start:end] = np.minimum(distance / (_FADE_FRAMES + 1), 1)
        return weights

    def shot_ranges(self) -> list[tuple[int, int]]:
        """Return the first frame of each shot, and the frame after its last."""
        borders = [0, *(1 + np.flatnonzero(np.diff(self.shots))), len(self.shots)]
        return [(int(a), int(b)) for a, b in zip(borders, borders[1:], strict=False) if a < b]

    def squares(self) -> np.ndarray:
        """Return a steady square around the face of each frame: centre x, y and side, float64 [T, 3]."""
        left, top, right, bottom = self.boxes.astype(np.float64).T
        side = MARGIN * np.maximum(right - left, bottom - top)
        raw = np.stack([(left + right) / 2, (top + bottom) / 2, side], axis=1)  # [T, 3]
        squares = np.zeros_like(raw)
        for start, end in self.shot_ranges():
            usable = self.usable[start:end, None].astype(np.float64)
            total = _smooth(usable)
            np.divide(_smooth(raw[start:end] * usable), total, out=squares[start:end], where=total > 0)
        return squares


def follow_face(footage: Footage) -> FaceTrack:
    """Decode a video once and follow its main face. A frame takes about two kilobytes of memory.

    Raises:
        ValueError: The file cannot be decoded, or mediapipe is not installed.
    """
    follower, converter = FaceFollower(), footage.converter(_LONGEST_PX)
    geometry = Geometry.of(footage)
    times: list[float] = []
    shots: list[int] = []
    faces: list[Face | None] = []
    pictures = ((frame, converter(frame)) for frame in footage.frames())
    cuts, end_s = _Cuts(), 0.0
    waiting = next(pictures, None)

    def shot() -> Iterator[np.ndarray]:
        """Yield the pictures up to the next cut, which stays in `waiting`."""
        nonlocal waiting, end_s
        first = True
        while waiting is not None:
            frame, picture = waiting
            if cuts.seen(picture) and not first:
                return
            first, waiting = False, None
            assert frame.pts is not None
            times.append(float(frame.pts * footage.time_base))
            end_s = float((frame.pts + (frame.duration or 0)) * footage.time_base)
            yield picture
            waiting = next(pictures, None)

    number = 0
    while waiting is not None:
        scale = geometry.picture_size[0] / waiting[1].shape[1]
        last: Face | None = None
        for face in follower.follow(shot()):
            number += last is not None and face is not None and _overlap(last, face) < _MIN_OVERLAP
            shots.append(number)
            last = face
            faces.append(face and face.scaled(scale))
        number += 1
    return _stacked(times, shots, faces, end_s)


def _stacked(times: list[float], shots: list[int], faces: list[Face | None], end_s: float) -> FaceTrack:
    """Return the track of T frames."""
    count = len(faces)
    track = FaceTrack(
        times_s=np.array(times),
        shots=np.array(shots),
        found=np.array([face is not None for face in faces]),
        points=np.zeros((count, len(LANDMARKS), 2), np.float32),
        blendshapes=np.zeros((count, 51), np.float32),
        angles=np.zeros(count, np.float32),
        boxes=np.zeros((count, 4), np.float32),
        end_s=end_s,
    )
    for n, face in enumerate(faces):
        if face is not None:
            track.points[n] = face.points[LANDMARKS, :2]
            track.blendshapes[n] = face.blendshapes
            ahead = face.matrix[2, 2] / np.linalg.norm(face.matrix[:3, 2])
            track.angles[n] = np.degrees(np.arccos(np.clip(ahead, -1, 1)))
            track.boxes[n] = face.box
    return track


class _Cuts:
    """Find the cuts in successive pictures."""

    def __init__(self):
        self._last: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=_NEARBY_FRAMES)

    def seen(self, picture: np.ndarray) -> bool:
        """Return whether this picture belongs to another shot than the previous one."""
        step = max(max(picture.shape[:2]) // _THUMBNAIL_PX, 1)
        thumbnail = picture[step // 2 :: step, step // 2 :: step].astype(np.int16)
        last, self._last = self._last, thumbnail
        if last is None:
            return False
        change = float(np.abs(thumbnail - last).mean())
        # Without earlier changes, only the largest ones count.
        usual = float(np.mean(self._changes)) if self._changes else _ALWAYS_CUT
        cut = change >= _ALWAYS_CUT or change >= max(_MIN_CHANGE, _MIN_RATIO * usual)
        if cut:
            self._changes.clear()
        else:
            self._changes.append(change)
        return cut


def _smooth(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, columns] weighted by a Gaussian over the frames around each one."""
    reach = round(3 * _STEADY_FRAMES)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _STEADY_FRAMES) ** 2)
    padded = np.pad(rows, ((reach, reach), (0, 0)))
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], axis=1)


def _overlap(a: Face, b: Face) -> float:
    """Return the intersection over union of the boxes of two faces."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a.area + b.area - shared)
