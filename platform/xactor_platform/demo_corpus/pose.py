"""Turn a flat picture of a head by a pose, as if the head in the picture were round."""

import numpy as np
import torch

# Number of grid points in each direction. Maps are computed at these points and interpolated between them.
_GRID = 33


class PoseMap:
    """Make maps for `cv2.remap` from poses.

    Coordinates of the source picture run from -1 to 1, x to the right and y down. In the shapes below, S is `size_px`
    and G the number of grid points in each direction.

    Args:
        centre: x and y of the head's middle, around which the head turns.
        radii: horizontal and vertical radius of the head. The face extends about `radii[0]` to each side of the middle.
        source_px: side of the source picture in pixels.
        size_px: side of the resulting picture in pixels.
        reach: distance from the middle, in radii of the head, beyond which the picture stays still. It is for
            photographs, whose background must not move. None moves everything.
        view: the square of the source picture that the result shows: x and y of its centre, and half its side.
    """

    def __init__(
        self,
        *,
        centre: tuple[float, float],
        radii: tuple[float, float],
        source_px: int,
        size_px: int,
        reach: float | None,
        view: tuple[float, float, float] = (0.0, 0.0, 1.0),
    ):
        axis = np.linspace(-1, 1, _GRID)
        self._x, self._y = np.meshgrid(view[0] + view[2] * axis, view[1] + view[2] * axis)  # [G, G]
        self._centre, self._radii, self._source_px, self._size_px = centre, radii, source_px, size_px
        # Weights of the grid's points at each pixel's centre, [S, G], for linear interpolation. OpenCV's remap could
        # interpolate the grid too, but it rounds the positions.
        inner = (np.arange(size_px) + 0.5) / size_px * (_GRID - 1)
        near = (1 - abs(inner[:, None] - np.arange(_GRID))).clip(0)
        self._near = torch.from_numpy(near.astype(np.float32))
        # 1 where the picture moves with the head, 0 where it stays.
        self._mobility = np.ones_like(self._x)
        if reach is not None:
            away = np.hypot((self._x - centre[0]) / radii[0], (self._y - centre[1]) / radii[1])
            self._mobility = 1 - _smoothstep((away - 1.0) / (reach - 1.0))
            # The edge of the picture stays as well.
            edge = np.maximum(abs(self._x), abs(self._y))
            self._mobility *= 1 - _smoothstep((edge - 0.8) / 0.2)

    def maps(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source x and y of each pixel, float32 [S, S] each, for a pose [6] as in `xactor.controls.POSE`."""
        pitch, yaw, roll, x, y, log_scale = (float(value) for value in pose)
        radius_x, radius_y = self._radii
        face_width = 2 * radius_x
        # Invert the motions in reverse order: translation and scale, then the roll, then the turn in depth.
        scale = np.exp(-log_scale)
        dx = (self._x - self._centre[0] - x * face_width) * scale
        dy = (self._y - self._centre[1] - y * face_width) * scale
        cos, sin = np.cos(roll), np.sin(roll)
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        # Depth of the head: an ellipsoid that is slightly larger than the head, on a flat background.
        away = (dx / (1.25 * radius_x)) ** 2 + (dy / (1.25 * radius_y)) ** 2
        depth = radius_x * (0.95 * np.sqrt(np.clip(1 - away, 0, 1)) - 0.3)
        dx = (dx - depth * np.sin(yaw)) / np.cos(yaw)
        dy = (dy - depth * np.sin(pitch)) / np.cos(pitch)
        map_x = self._x + (self._centre[0] + dx - self._x) * self._mobility
        map_y = self._y + (self._centre[1] + dy - self._y) * self._mobility
        pixels = (np.stack([map_x, map_y]) + 1) * (self._source_px / 2) - 0.5  # [2, G, G]
        # Torch computes this product, because torch uses only the threads that it is given. NumPy's BLAS would use all
        # cores in every process.
        large = self._near @ torch.from_numpy(pixels.astype(np.float32)) @ self._near.T  # [2, S, S]
        return large[0].numpy(), large[1].numpy()


def _smoothstep(value: np.ndarray) -> np.ndarray:
    """Return a smooth step: 0 for values up to 0, 1 for values from 1 on."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)
