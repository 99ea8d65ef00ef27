"""Find the first frame of each shot of a video. Shots are separated by cuts and dissolves."""

from collections import deque
from collections.abc import Iterable

import numpy as np

THUMBNAIL_PX = 64
# Ours: we chose all values below. The difference of two frames is the mean absolute difference of their thumbnails, in
# levels from 0 to 255.
# Smallest difference of successive frames at a cut.
_MIN_CHANGE = 6.0
# Smallest ratio of the difference at a cut to the mean of the differences around it.
_MIN_RATIO = 5.0
# A difference this large is not compared with the differences around it.
_ALWAYS_CUT = 40.0
# The mean of the differences around a cut covers this many frames before the cut and this many after it.
_NEARBY_FRAMES = 8
# Number of frames on each side of a cut that are compared. The last of the frames after the cut must differ from all of
# the frames before it. A camera's flash is shorter, so it does not count as a cut.
_LASTING_FRAMES = 3
# In a dissolve, two pictures this many frames apart show different shots, and the picture halfway is about their mean.
_DISSOLVE_FRAMES = 24
# Smallest difference of these two pictures.
_MIN_DISSOLVE = 25.0
# Largest difference of the middle picture from their mean, as a fraction of their difference. A moving object fails
# this test, because it is not at two places in one picture.
_MAX_OFF_MEAN = 0.2


def shot_starts(thumbnails: Iterable[np.ndarray]) -> tuple[list[int], int]:
    """Return the first frame of each shot, and the number of frames.

    A cut is a change that is much larger than the changes around it, unlike a gesture, and that lasts, unlike a flash.
    A dissolve is divided into shots of less than a second, which curation drops as too short.

    Args:
        thumbnails: thumbnails of all frames, uint8 [H, W, 3]. Only the most recent ones are held in memory.
    """
    # For each frame n: its difference from frame n - 1.
    change: list[float] = []
    # For each frame n: the smallest difference of frame n + _LASTING_FRAMES - 1 from the _LASTING_FRAMES before n.
    lasting: list[float] = []
    # Numbers of the frames that are the mean of an earlier and a later frame.
    mixed: list[int] = []
    recent: deque[np.ndarray] = deque(maxlen=2 * _LASTING_FRAMES)
    around: deque[np.ndarray] = deque(maxlen=_DISSOLVE_FRAMES + 1)
    for thumbnail in thumbnails:
        picture = thumbnail.astype(np.int16)
        # If the size of the pictures changes, there is a cut. 255 is the largest possible difference.
        if recent and recent[-1].shape != picture.shape:
            change.append(255.0)
            recent.clear()
            around.clear()
        else:
            change.append(_difference(recent[-1], picture) if recent else 0.0)
        recent.append(picture)
        around.append(picture)
        if len(around) == around.maxlen and _is_mixed(around):
            mixed.append(len(change) - 1 - _DISSOLVE_FRAMES // 2)
        if len(recent) > _LASTING_FRAMES:
            # Frames at the start or next to a change of size were not compared. Changes at these frames count as
            # lasting.
            lasting += [255.0] * (len(change) - _LASTING_FRAMES - len(lasting))
            lasting.append(min(_difference(before, picture) for before in list(recent)[:-_LASTING_FRAMES]))
    # The last frames have too few frames after them to compare. Changes at these frames count as lasting.
    lasting += change[len(lasting) :]
    changes, lasting_changes = np.array(change), np.array(lasting)
    count = len(changes)
    starts = [0] if count else []
    for n in np.flatnonzero(changes >= _MIN_CHANGE):
        before, after = changes[max(n - _NEARBY_FRAMES, 1) : n], changes[n + 1 : n + 1 + _NEARBY_FRAMES]
        nearby = np.concatenate([before, after])
        usual = float(np.mean(nearby)) if len(nearby) else 0.0
        stands_out = changes[n] >= _ALWAYS_CUT or changes[n] >= _MIN_RATIO * usual
        lasts = lasting_changes[n] >= 0.5 * changes[n]
        if n and stands_out and lasts:
            starts.append(int(n))
    return sorted({*starts, *_dissolve_starts(mixed, count)}), count


def _is_mixed(around: deque[np.ndarray]) -> bool:
    """Return whether the first and the last picture differ, and the middle one is about their mean."""
    first, middle, last = around[0], around[len(around) // 2], around[-1]
    across = _difference(first, last)
    return across >= _MIN_DISSOLVE and _difference(2 * middle, first + last) / 2 <= _MAX_OFF_MEAN * across


def _dissolve_starts(mixed: list[int], count: int) -> list[int]:
    """Return the starts of the short shots that dissolves are cut into, and of the shots that follow the dissolves.

    Args:
        mixed: numbers of the frames that are the mean of an earlier and a later frame, in order.
        count: number of frames of the video.
    """
    half = _DISSOLVE_FRAMES // 2
    starts: list[int] = []
    if not mixed:
        return starts
    # Mixed frames that are close to each other belong to one dissolve.
    for dissolve in np.split(np.array(mixed), np.flatnonzero(np.diff(mixed) > half) + 1):
        first, end = int(dissolve[0]) - half, int(dissolve[-1]) + half + 1
        starts += [*range(first, end, _DISSOLVE_FRAMES), end]
    return [start for start in starts if start < count]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of two pictures, in levels from 0 to 255."""
    return float(np.abs(a - b).mean())
