"""Cut the square that SyncNet sees out of a picture: the face's box with the reference's margin, shifted down.

The reference is github.com/joonson/syncnet_python. Ours, different from the reference: boxes come from landmarks, and
not from the face detector S3FD; like that detector's boxes, they end at the hairline and the chin. A pixel of the crop
averages over the area that it covers, while the reference's OpenCV interpolates between four pixels. Pictures are not
compressed with XviD and JPEG before they are cut.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from xactor.faces.crop import MARGIN

SYNCNET_PX = 224
# Margin to the left and to the right of the face, as a fraction of half the longer side of the face's box. The margin
# below the face is twice as large. There is no margin above the face.
_MARGIN = 0.4
# Grey level of the parts of a crop that lie past the picture's border.
_GREY = 110
# Length of the median filter over a track, in frames.
_STEADY_FRAMES = 13

Box = Sequence[float] | np.ndarray
"""Left, top, right and bottom in pixels."""


def sync_crop(picture: np.ndarray, box: Box, size_px: int = SYNCNET_PX) -> np.ndarray:
    """Cut the crop uint8 [size_px, size_px, 3] out of a picture uint8 [H, W, 3], given the box of its face.

    Raises:
        ValueError: The picture has another shape or type, or the box is empty, infinite or outside the picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    left, top, right, bottom = (float(edge) for edge in box)
    if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
        raise ValueError(f"a face box must be left < right and top < bottom, got {[*map(float, box)]}")
    half = max(right - left, bottom - top) / 2
    side = max(round(half * (2 + 2 * _MARGIN)), 1)
    x = round((left + right) / 2 - half * (1 + _MARGIN))
    y = round((top + bottom) / 2 - half)
    height, width = picture.shape[:2]
    rows, columns = slice(max(y, 0), max(y + side, 0)), slice(max(x, 0), max(x + side, 0))
    inside = picture[rows, columns]
    if not inside.size:
        raise ValueError(f"a face box must meet the picture of {width}x{height} px, got {[*map(float, box)]}")
    square = np.full((side, side, 3), _GREY, np.uint8)
    row, column = rows.start - y, columns.start - x
    square[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    if side == size_px:
        return square
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), Image.Resampling.BILINEAR))


def face_in_crop(side_px: int) -> tuple[float, float, float, float]:
    """Return the face's box in a crop that was cut by `xactor.faces.crop_box`, which adds a margin around the face.

    Args:
        side_px: Side of the crop.

    Returns:
        Left, top, right and bottom in pixels of the crop.
    """
    edge = side_px * (1 - 1 / MARGIN) / 2
    return edge, edge, side_px - edge, side_px - edge


def steady_boxes(boxes: np.ndarray) -> np.ndarray:
    """Smooth the boxes [T, 4] of one face in successive frames. Return squares, float64 [T, 4].

    The centre and the size of a square are medians over 13 frames. Ours: the track is mirrored at its ends, while the
    reference assumes zeros past the ends.

    Raises:
        ValueError: The boxes are not [T, 4] with T >= 1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes must be [T, 4] with T >= 1, got {list(boxes.shape)}")
    left, top, right, bottom = boxes.T.astype(np.float64)
    half = np.maximum(right - left, bottom - top) / 2
    track = np.stack([(left + right) / 2, (top + bottom) / 2, half])  # [3, T]
    around = np.pad(track, ((0, 0), (_STEADY_FRAMES // 2,) * 2), mode="reflect")
    x, y, half = np.median(np.lib.stride_tricks.sliding_window_view(around, _STEADY_FRAMES, axis=1), axis=-1)
    return np.stack([x - half, y - half, x + half, y + half], axis=1)
