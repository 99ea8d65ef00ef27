"""A real photograph that acts: scikit-image's astronaut (Eileen Collins, NASA, public domain), warped by the controls.

Lids, lips and jaw are moved by piecewise maps of the picture's own pixels: an upper lid slides down stretching the skin
above it, the lower lip and the chin part from the upper lip, and what shows between is drawn. Then the pose
turns the head within its surroundings. All points below are pixels of the 512 px original, found once by hand.
"""

import cv2
import numpy as np

from xactor.controls import INDEX
from xactor_platform.corpus.pose import PoseMap

_CROP = (108, 0, 232)  # left, top, side of the square that is used
_ZOOM = 2.0  # canvas pixels to a pixel of the photograph
_SKIN_SHADE = (96, 58, 50)

# Left to right as seen: (x, y) along the lids' edges, upper and lower, of either eye.
_EYES = (
    (
        [195.3, 199.2, 204.3, 209.7, 213.6],
        [100.8, 98.2, 97.9, 100.1, 103.4],
        [100.8, 103.2, 104.3, 104.0, 103.4],
    ),
    (
        [236.4, 240.6, 246.2, 251.4, 255.3],
        [104.7, 101.7, 100.1, 101.0, 103.8],
        [104.7, 105.6, 106.5, 106.3, 103.8],
    ),
)
_BROWS = (
    ([189.9, 198.7, 206.2, 216.3], [93.2, 89.7, 91.0, 95.0]),
    ([234.4, 245.0, 252.7, 261.6], [95.6, 92.7, 92.5, 96.9]),
)
# The lips, at columns from corner to corner: upper lip's top and bottom edge, lower lip's top and bottom edge.
_LIPS_X = [202.6, 207.0, 213.0, 217.6, 223.2, 229.0, 233.6, 239.0, 244.2]
_LIP_EDGES = (
    [139.6, 138.4, 138.4, 138.7, 139.6, 139.0, 139.1, 139.3, 140.6],
    [139.9, 140.3, 141.4, 142.4, 143.2, 142.8, 142.2, 141.6, 141.0],
    [140.0, 143.2, 147.1, 148.4, 149.2, 148.9, 147.7, 144.9, 141.2],
    [140.4, 147.3, 152.2, 153.8, 154.7, 154.2, 152.6, 147.9, 141.6],
)
_MOUTH = (223.4, 143.0)
_CHIN_Y = 177.0
_FACE = (225.0, 122.0)  # the head's middle
_RADII = (47.0, 62.0)


class PhotoFace:
    """The photographed person, rendered at `size_px` square."""

    def __init__(self, size_px: int = 256):
        try:
            from skimage.data import astronaut
        except ImportError as error:
            raise ValueError("the demo's photograph needs scikit-image: install xactor[demo]") from error
        left, top, side = _CROP
        crop = astronaut()[top : top + side, left : left + side]
        self._side = round(side * _ZOOM)
        self._canvas = cv2.resize(crop, (self._side, self._side), interpolation=cv2.INTER_CUBIC)
        self.size_px = size_px
        self._pose = PoseMap(
            centre=((_FACE[0] - left) / side * 2 - 1, (_FACE[1] - top) / side * 2 - 1),
            radii=(_RADII[0] / side * 2, _RADII[1] / side * 2),
            source_px=self._side,
            size_px=size_px,
            reach=2.1,
        )
        y, x = np.mgrid[0 : self._side, 0 : self._side].astype(np.float32)
        # The photograph's own pixel coordinates of every canvas pixel.
        self._x, self._y = (x + 0.5) / _ZOOM + left, (y + 0.5) / _ZOOM + top

    def render(self, controls: np.ndarray) -> np.ndarray:
        """One frame, uint8 [S, S, 3] RGB, from a row of the control track [57]."""
        c = {name: float(controls[i]) for name, i in INDEX.items()}
        face = self._canvas
        map_x, map_y = self._pose.maps(controls[INDEX["headPitch"] :])
        del c
        return cv2.remap(face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
