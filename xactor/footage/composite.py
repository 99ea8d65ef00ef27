"""Add a change of colours to the planes of a decoded frame, within a soft region.

Only the change is added. So where nothing changes, a pixel stays as it is even inside the region, and the frame's grain
and its bits stay everywhere.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from xactor.faces import FACE_REGION, region_pixels
from xactor.media.footage import Footage, planes

# Weights of red and blue in luma, by matrix.
_WEIGHTS = {
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.BT2020: (0.2627, 0.0593),
}
_BT601 = (0.299, 0.114)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
# Percentile of the brightness in the face's region that counts as bright skin.
_BRIGHT_SKIN = 85


def add_change(
    frame: VideoFrame, change: np.ndarray, mask: np.ndarray, corner: tuple[int, int], footage: Footage
) -> None:
    """Add a change of colours to a frame's planes in place, where the mask is above 0.

    Args:
        frame: The frame, whose planes may be written.
        change: Change of red, green and blue in levels of 8 bits, float32 [h, w, 3].
        mask: Weight of the change, 0 to 1, float32 [h, w].
        corner: Column and row of the change's first pixel. Corner, w and h are multiples of `footage.chroma_step`.
        footage: The frame's video.
    """
    luma, *chroma = (mask[..., None] * change @ _matrix(footage).T).transpose(2, 0, 1)  # [h, w] each
    (left, top), (height, width) = corner, mask.shape
    step_x, step_y = footage.chroma_step
    for plane, addend, (x, y) in zip(
        planes(frame), (luma, *chroma), ((1, 1), (step_x, step_y), (step_x, step_y)), strict=True
    ):
        addend = addend.reshape(height // y, y, width // x, x).mean(axis=(1, 3))
        rows, columns = slice(top // y, (top + height) // y), slice(left // x, (left + width) // x)
        values = plane[rows, columns]
        values[:] = np.clip(np.rint(values + addend), 0, (1 << footage.bits) - 1).astype(plane.dtype)


def dimmed(change: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Limit a change of crops' colours to the brightness of the face's bright skin: float32 [n, S, S, 3].

    The network paints teeth as bright as those that it was trained on, whatever the light of the footage.

    Args:
        change: Change of red, green and blue in levels of 8 bits, [n, S, S, 3].
        crops: The crops, uint8 [n, S, S, 3].
    """
    rows, columns = region_pixels(FACE_REGION, crops.shape[1])
    before, brighter = crops @ _LUMA, change @ _LUMA  # [n, S, S]
    bright = np.percentile(before[:, rows, columns], _BRIGHT_SKIN, axis=(1, 2))[:, None, None]
    excess = np.minimum(brighter, before + brighter - np.maximum(before, bright))
    return change - np.maximum(excess, 0)[..., None]


def resampled(change: np.ndarray, source: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Resample a part of a change of colours, float32 [S, S, 3], to `size`, width and height: [h, w, 3].

    Args:
        change: The change.
        source: Left, top, right and bottom of the part, in pixels, which may be fractions.
        size: Width and height of the result in pixels.
    """
    box = cast(tuple[float, float, float, float], tuple(source))
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC, box=box))
        for channel in np.ascontiguousarray(change.transpose(2, 0, 1))
    ]
    return np.stack(channels, axis=-1)


def _matrix(footage: Footage) -> np.ndarray:
    """Return the matrix from a change of 8-bit RGB to one of the frame's luma and chroma, [3, 3]."""
    matrix, colour_range = footage.colours[:2]
    red, blue = _WEIGHTS.get(matrix, _BT601)  # pyright: ignore
    luma = np.array([red, 1 - red - blue, blue])
    rows = [luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * blue), (np.array([1, 0, 0]) - luma) / (2 - 2 * red)]
    full = colour_range == ColorRange.JPEG or footage.pixel_format.startswith("yuvj")
    scales = np.array([1, 1, 1]) if full else np.array([219, 224, 224]) / 255
    return np.stack(rows) * scales[:, None] * (1 << footage.bits - 8)
