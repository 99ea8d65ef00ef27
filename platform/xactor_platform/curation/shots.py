"""Where one shot of a video ends and the next begins."""

from collections import deque
from collections.abc import Iterable

import numpy as np

THUMBNAIL_PX = 64
# Ours, in levels of 255 between thumbnails: what a cut is at least, beside what moves about it, and what always is one.
_LEAST, _RATIO, _ALWAYS = 6.0, 5.0, 40.0
_AROUND = 8  # frames before and after
_LASTS = 3  # frames before and after which a cut still shows; a camera's flash does not


def shot_starts(thumbnails: Iterable[np.ndarray]) -> tuple[list[int], int]:
    """The first frame of each shot, from 0; and how many frames there are. Thumbnails uint8 [H, W, 3] are not kept.

    A cut is a change that stands out from those around it and stays: neither a gesture nor a flash.
    """
    change: list[float] = []  # of frame n from the one before
    lasting: list[float] = []  # of frame n + _LASTS - 1 from those before n, the likest of them
    recent: deque[np.ndarray] = deque(maxlen=2 * _LASTS)
    for thumbnail in thumbnails:
        picture = thumbnail.astype(np.int16)
        if recent and recent[-1].shape != picture.shape:  # a stream may change its size: that is a cut
            change.append(255.0)
            recent.clear()
        else:
            change.append(_apart(recent[-1], picture) if recent else 0.0)
        recent.append(picture)
        if len(recent) > _LASTS:
            lasting += [255.0] * (len(change) - _LASTS - len(lasting))
            lasting.append(min(_apart(before, picture) for before in list(recent)[:-_LASTS]))
    lasting += change[len(lasting) :]
    d, stays = np.array(change), np.array(lasting)
    starts = [0] if len(d) else []
    for n in np.flatnonzero(d >= _LEAST):
        around = np.concatenate([d[max(n - _AROUND, 1) : n], d[n + 1 : n + 1 + _AROUND]])
        usual = float(np.mean(around)) if len(around) else 0.0
        stands_out = d[n] >= _ALWAYS or d[n] >= _RATIO * usual
        if n and stands_out and stays[n] >= 0.5 * d[n]:
            starts.append(int(n))
    return starts, len(d)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())
