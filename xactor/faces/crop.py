"""Cut the square around a face, which models see, out of a picture, and paste it back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xactor.faces.landmarker import Face

# Ours: the square's side, relative to the landmarks' box, which ends at the hairline and the chin. This leaves room for
# hair, a dropped jaw and a head that moves by a fifth of its size, and still gives the mouth a sixth of the width.
MARGIN = 1.7
# Where the whole face and the mouth lie in that square: top, bottom, left, right as fractions of its side.
FACE_REGION = (0.18, 0.85, 0.2, 0.8)
MOUTH_REGION = (0.55, 0.8, 0.32, 0.68)
# Width of the edge over which a patch fades into its picture, as a fraction of the side.
_FEATHER = 1 / 12


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """Describe a square of a picture, in whole pixels of the picture. It may reach past the border."""

    left: int
    """Column of the left edge."""
    top: int
    """Row of the top edge."""
    side: int
    """Length of the side, at least 1."""

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"side must be >= 1, got {self.side}")

    def scaled(self, factor: float) -> "CropBox":
        """Return the same square for the picture resized by a factor."""
        left, top, side = (round(value * factor) for value in (self.left, self.top, self.side))
        return CropBox(left=left, top=top, side=max(side, 1))

    def cut(self, picture: np.ndarray, size_px: int) -> np.ndarray:
        """Cut the square out of a picture uint8 [H, W, 3] and resize it to uint8 [size_px, size_px, 3].

        Past the border the picture's edge pixels are repeated.
        """
        rows, above_below = _span(self.top, self.side, picture.shape[0])
        columns, left_right = _span(self.left, self.side, picture.shape[1])
        square = picture[rows, columns]
        if square.shape[:2] != (self.side, self.side):
            square = np.pad(square, (above_below, left_right, (0, 0)), mode="edge")
        return _resized(square, size_px)

    def paste(self, picture: np.ndarray, patch: np.ndarray) -> np.ndarray:
        """Return a copy of a picture uint8 [H, W, 3] with a patch uint8 [S, S, 3] in this square, its edge faded in."""
        inside = np.arange(self.side) + 0.5
        ramp = (np.minimum(inside, self.side - inside) / (_FEATHER * self.side)).clip(0, 1)
        weight = (np.minimum.outer(ramp, ramp)[..., None]).astype(np.float32)  # [side, side, 1]
        height, width = picture.shape[:2]
        # Bounds of the part of the square that is inside the picture, first in the picture, then in the square.
        y, x = max(self.top, 0), max(self.left, 0)
        below, right = max(min(self.top + self.side, height), y), max(min(self.left + self.side, width), x)
        visible = slice(y - self.top, below - self.top), slice(x - self.left, right - self.left)
        over, weight = _resized(patch, self.side)[visible].astype(np.float32), weight[visible]
        result = picture.copy()
        under = result[y:below, x:right]
        under[...] = np.rint(under + (over - under) * weight).astype(np.uint8)
        return result


def region_pixels(region: tuple[float, ...], side: int) -> tuple[slice, slice]:
    """Return the rows and columns of a region in a square of `side` pixels."""
    top, bottom, left, right = (round(fraction * side) for fraction in region)
    return slice(top, bottom), slice(left, right)


def crop_box(faces: Face | Sequence[Face]) -> CropBox:
    """Return the square around a face, or the median of the squares around the face in a clip's frames.

    Raises:
        ValueError: There are no faces.
    """
    faces = [faces] if isinstance(faces, Face) else faces
    if not faces:
        raise ValueError("no faces to crop around")
    left, top, right, bottom = np.array([face.box for face in faces]).T  # each [T]
    size = np.maximum(right - left, bottom - top)
    x, y, side = (float(np.median(v)) for v in ((left + right) / 2, (top + bottom) / 2, MARGIN * size))
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _span(start: int, side: int, length: int) -> tuple[slice, tuple[int, int]]:
    """Return the pixels of a row of `length` that a square covers, at least one, and the padding at either end."""
    first = min(max(start, 0), length - 1)
    last = max(min(start + side, length), first + 1)
    before = min(max(-start, 0), side - 1)
    return slice(first, last), (before, side - before - (last - first))


def _resized(square: np.ndarray, size_px: int) -> np.ndarray:
    if square.shape[0] == size_px:
        return np.ascontiguousarray(square)
    # Hamming averages over the area of a new pixel, as a box filter does, but without shifting the picture.
    how = Image.Resampling.HAMMING if size_px < square.shape[0] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), how))
