"""Where one shot of a video ends and the next begins."""

from collections import deque
from collections.abc import Iterable

import numpy as np

THUMBNAIL_PX = 64
# Ours, in levels of 255 between thumbnails: what a cut is at least, beside what moves about it, and what always is one.
_LEAST, _RATIO, _ALWAYS = 6.0, 5.0, 40.0
_AROUND = 8  # frames before and after
_LASTS = 3  # frames before and after which a cut still shows; a camera's flash does not
# A dissolve: two pictures so many frames apart differ by so much, and the one in the middle is their mean, but for a
# part of the difference. What moves is never the mean of where it was and will be.
_DISSOLVE_FRAMES, _DISSOLVE, _UNLIKE_MEAN = 24, 25.0, 0.2


def shot_starts(thumbnails: Iterable[np.ndarray]) -> tuple[list[int], int]:
    """The first frame of each shot, from 0; and how many frames there are. Thumbnails uint8 [H, W, 3] are not kept.

    A cut is a change that stands out from those around it and stays: neither a gesture nor a flash. A dissolve becomes
    shots of its own, of less than a second each: too short to be used.
    """
    change: list[float] = []  # of frame n from the one before
    lasting: list[float] = []  # of frame n + _LASTS - 1 from those before n, the likest of them
    mixed: list[int] = []  # frames that are the mean of those before and after
    recent: deque[np.ndarray] = deque(maxlen=2 * _LASTS)
    around: deque[np.ndarray] = deque(maxlen=_DISSOLVE_FRAMES + 1)
    for thumbnail in thumbnails:
        picture = thumbnail.astype(np.int16)
        if recent and recent[-1].shape != picture.shape:  # a stream may change its size: that is a cut
            change.append(255.0)
            recent.clear()
            around.clear()
        else:
            change.append(_apart(recent[-1], picture) if recent else 0.0)
        recent.append(picture)
        around.append(picture)
        if len(around) == around.maxlen and _is_mixed(around):
            mixed.append(len(change) - 1 - _DISSOLVE_FRAMES // 2)
        if len(recent) > _LASTS:
            lasting += [255.0] * (len(change) - _LASTS - len(lasting))
            lasting.append(min(_apart(before, picture) for before in list(recent)[:-_LASTS]))
    lasting += change[len(lasting) :]
    d, stays = np.array(change), np.array(lasting)
    starts = [0] if len(d) else []
    for n in np.flatnonzero(d >= _LEAST):
        near = np.concatenate([d[max(n - _AROUND, 1) : n], d[n + 1 : n + 1 + _AROUND]])
        usual = float(np.mean(near)) if len(near) else 0.0
        stands_out = d[n] >= _ALWAYS or d[n] >= _RATIO * usual
        if n and stands_out and stays[n] >= 0.5 * d[n]:
            starts.append(int(n))
    return sorted({*starts, *_dissolves(mixed, len(d))}), len(d)


def _is_mixed(around: deque[np.ndarray]) -> bool:
    """Whether the middle one of these pictures is the mean of the first and the last, which differ."""
    first, middle, last = around[0], around[len(around) // 2], around[-1]
    across = _apart(first, last)
    return across >= _DISSOLVE and _apart(2 * middle, first + last) / 2 <= _UNLIKE_MEAN * across


def _dissolves(mixed: list[int], count: int) -> list[int]:
    """Starts of the shots that dissolves become, and of those after them."""
    half = _DISSOLVE_FRAMES // 2
    starts: list[int] = []
    for run in np.split(np.array(mixed), np.flatnonzero(np.diff(mixed) > half) + 1) if mixed else []:
        first, end = int(run[0]) - half, int(run[-1]) + half + 1
        starts += [*range(first, end, _DISSOLVE_FRAMES), end]
    return [start for start in starts if start < count]


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())
