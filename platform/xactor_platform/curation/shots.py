"""Find the starts of a video's shots: its cuts and dissolves."""

from collections import deque
from collections.abc import Iterable

import numpy as np

THUMBNAIL_PX = 64
# Ours, in levels (of 255) by which thumbnails differ: the smallest difference at a cut, its smallest ratio to the
# differences around it, and the difference that is always a cut.
_MIN_CHANGE, _MIN_RATIO, _ALWAYS = 6.0, 5.0, 40.0
# Frames before and after a cut to which the ratio refers.
_AROUND = 8
# Frames before and after a cut that still differ. A camera's flash is shorter.
_LASTING = 3
# A dissolve: pictures this many frames apart differ by at least this many levels, and the middle one differs from their
# mean by at most this fraction of the difference. Something that moves is never the mean of its earlier and later
# places.
_DISSOLVE_FRAMES, _DISSOLVE, _UNLIKE_MEAN = 24, 25.0, 0.2


def shot_starts(thumbnails: Iterable[np.ndarray]) -> tuple[list[int], int]:
    """Return the first frame of each shot, and the number of frames.

    A cut is a change that stands out from those around it and lasts, unlike a gesture or a flash. A dissolve becomes
    shots of its own, of less than a second each, which are too short to be used.

    Args:
        thumbnails: of all frames, uint8 [H, W, 3]. Only the most recent ones are held.
    """
    # Change of frame n from the one before.
    change: list[float] = []
    # Smallest change of frame n + _LASTING - 1 from those before n.
    lasting: list[float] = []
    # Frames that are the mean of one before and one after.
    mixed: list[int] = []
    recent: deque[np.ndarray] = deque(maxlen=2 * _LASTING)
    around: deque[np.ndarray] = deque(maxlen=_DISSOLVE_FRAMES + 1)
    for thumbnail in thumbnails:
        picture = thumbnail.astype(np.int16)
        # A stream may change its size. That is a cut.
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
        if len(recent) > _LASTING:
            lasting += [255.0] * (len(change) - _LASTING - len(lasting))
            lasting.append(min(_difference(before, picture) for before in list(recent)[:-_LASTING]))
    lasting += change[len(lasting) :]
    d, stays = np.array(change), np.array(lasting)
    starts = [0] if len(d) else []
    for n in np.flatnonzero(d >= _MIN_CHANGE):
        near = np.concatenate([d[max(n - _AROUND, 1) : n], d[n + 1 : n + 1 + _AROUND]])
        usual = float(np.mean(near)) if len(near) else 0.0
        stands_out = d[n] >= _ALWAYS or d[n] >= _MIN_RATIO * usual
        if n and stands_out and stays[n] >= 0.5 * d[n]:
            starts.append(int(n))
    return sorted({*starts, *_dissolves(mixed, len(d))}), len(d)


def _is_mixed(around: deque[np.ndarray]) -> bool:
    """Tell whether the first and the last picture differ, and the middle one is their mean."""
    first, middle, last = around[0], around[len(around) // 2], around[-1]
    across = _difference(first, last)
    return across >= _DISSOLVE and _difference(2 * middle, first + last) / 2 <= _UNLIKE_MEAN * across


def _dissolves(mixed: list[int], count: int) -> list[int]:
    """Return the starts of the shots that dissolves become, and of those after them."""
    half = _DISSOLVE_FRAMES // 2
    starts: list[int] = []
    for run in np.split(np.array(mixed), np.flatnonzero(np.diff(mixed) > half) + 1) if mixed else []:
        first, end = int(run[0]) - half, int(run[-1]) + half + 1
        starts += [*range(first, end, _DISSOLVE_FRAMES), end]
    return [start for start in starts if start < count]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of two pictures, in levels."""
    return float(np.abs(a - b).mean())
