"""The square of a face that SyncNet sees: the reference's margin around a face box, lower than the face.

Ours, where it differs from github.com/joonson/syncnet_python: its boxes are S3FD's, ours the landmarks', which end at
the hairline and the chin as those do; a new pixel averages over the area it covers, where OpenCV takes the four next to
one point; and nothing passes through XviD and JPEG on the way.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from xactor.faces.crop import MARGIN

SYNCNET_PX = 224
_BESIDE = 0.4  # of half the face, added left and right; below twice that, above nothing
_GREY = 110  # beyond the picture's border
_STEADY_FRAMES = 13  # of the median filter over a track

Box = Sequence[float] | np.ndarray  # left, top, right, bottom in pixels


def sync_crop(picture: np.ndarray, box: Box, size_px: int = SYNCNET_PX) -> np.ndarray:
    """A picture uint8 [H, W, 3] and the box of its face to the crop uint8 [size_px, size_px, 3].

    Raises:
        ValueError: no picture of that kind, or a box that is empty, endless or outside the picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    left, top, right, bottom = (float(edge) for edge in box)
    if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
        raise ValueError(f"a face box must be left < right and top < bottom, got {[*map(float, box)]}")
    half = max(right - left, bottom - top) / 2
    side = max(round(half * (2 + 2 * _BESIDE)), 1)
    x = round((left + right) / 2 - half * (1 + _BESIDE))
    y = round((top + bottom) / 2 - half)
    height, width = picture.shape[:2]
    rows, columns = slice(max(y, 0), max(y + side, 0)), slice(max(x, 0), max(x + side, 0))
    inside = picture[rows, columns]
    if not inside.size:
        raise ValueError(f"a face box must meet the picture of {width}x{height} px, got {[*map(float, box)]}")
    square = np.full((side, side, 3), _GREY, np.uint8)
    down, along = rows.start - y, columns.start - x
    square[down : down + inside.shape[0], along : along + inside.shape[1]] = inside
    if side == size_px:
        return square
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), Image.Resampling.BILINEAR))


def face_in_crop(side_px: int) -> tuple[float, float, float, float]:
    """Where the face is in one of this project's own square crops: its `crop_box` is the face's box with a margin."""
    edge = side_px * (1 - 1 / MARGIN) / 2
    return edge, edge, side_px - edge, side_px - edge


def steady_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes of a track's frames to steady squares, float64 [T, 4]: a median over 13 frames of centre and size.

    Ours: a track is mirrored at its ends; the reference takes zeros there.

    Raises:
        ValueError: not [T, 4] with T >= 1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes must be [T, 4] with T >= 1, got {list(boxes.shape)}")
    left, top, right, bottom = boxes.T.astype(np.float64)
    half = np.maximum(right - left, bottom - top) / 2
    track = np.stack([(left + right) / 2, (top + bottom) / 2, half])  # [3, T]
    around = np.pad(track, ((0, 0), (_STEADY_FRAMES // 2,) * 2), mode="reflect")
    x, y, half = np.median(np.lib.stride_tricks.sliding_window_view(around, _STEADY_FRAMES, axis=1), axis=-1)
    return np.stack([x - half, y - half, x + half, y + half], axis=1)
