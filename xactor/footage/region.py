"""Draw the soft region of a frame that may change: lips and jaw, or the whole face."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from xactor.faces.landmarks import LANDMARKS

_POSITION = {int(number): position for position, number in enumerate(LANDMARKS)}
# Outlines as numbers of MediaPipe's mesh, from the picture's left over the chin to the right and back.
_JAW = (58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288)
_ABOVE_LIPS = (425, 327, 2, 98, 205)
_TEMPLES = (
    361,
    323,
    454,
    356,
    389,
    251,
    284,
    332,
    297,
    338,
    10,
    109,
    67,
    103,
    54,
    21,
    162,
    127,
    234,
    93,
    132,
)
_MOUTH, _WHOLE = (
    np.array([_POSITION[number] for number in (*_JAW, *rest)]) for rest in (_ABOVE_LIPS, _TEMPLES)
)
# How far the outline is moved out from the region's centre, along the jaw and elsewhere. Where a jaw moves, the neck
# moves with it, and an old chin must not stay visible below a new one.
_GROW_JAW, _GROW = 1.3, 1.05
# Width of the soft edge, as a fraction of the crop's side.
_FEATHER = 0.03


def outline(points: np.ndarray, moved: np.ndarray, *, whole: bool) -> np.ndarray:
    """Return the outline of the region that holds a face before and after its change, float32 [P, 2].

    Args:
        points: Landmarks in the frame, [K, 2].
        moved: The same landmarks after the change, [K, 2].
        whole: The whole face and not only lips and jaw.
    """
    ring = _WHOLE if whole else _MOUTH
    before, after = points[ring], moved[ring]
    centre = before.mean(axis=0)
    further = np.square(after - centre).sum(axis=1) > np.square(before - centre).sum(axis=1)
    grow = np.where(np.arange(len(ring)) < len(_JAW), _GROW_JAW, _GROW)[:, None]
    return centre + grow * (np.where(further[:, None], after, before) - centre)


def soft_mask(ring: np.ndarray, rectangle: tuple[int, int, int, int], feather_px: float) -> np.ndarray:
    """Return the weight of the region at each pixel of a rectangle, float32 [h, w] from 0 to 1.

    Args:
        ring: Outline, [P, 2].
        rectangle: Left, top, right and bottom in pixels. The weight is 0 at its edges.
        feather_px: Standard deviation of the soft edge.
    """
    left, top, right, bottom = rectangle
    picture = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).polygon([(x - left, y - top) for x, y in ring.tolist()], fill=255)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(feather_px)), np.float32) / 255


def feather_px(side: float) -> float:
    """Return the width of the soft edge for a crop with a given side in pixels."""
    return _FEATHER * side
