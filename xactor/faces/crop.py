"""The square around a face that models see: cut out of a picture, and put back into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xactor.faces.landmarker import Face

# Ours: the square's side in sizes of the landmarks' box, which ends at the hairline and the chin. So much leaves room
# for hair, a dropped jaw and a head that moves by a fifth of itself, and still gives the mouth a sixth of the width.
MARGIN = 1.7
# Where the square so has the whole face and the mouth: top, bottom, left, right in parts of its side.
FACE_REGION = (0.18, 0.85, 0.2, 0.8)
MOUTH_REGION = (0.55, 0.8, 0.32, 0.68)
_FEATHER = 1 / 12  # of the side: over so much of it a patch fades into its picture


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """A square of a picture, in its whole pixels; it may reach past the border."""

    left: int
    top: int
    side: int

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"side must be >= 1, got {self.side}")

    def scaled(self, factor: float) -> "CropBox":
        """The same square of the picture when that is resized by a factor."""
        left, top, side = (round(value * factor) for value in (self.left, self.top, self.side))
        return CropBox(left=left, top=top, side=max(side, 1))

    def cut(self, picture: np.ndarray, size_px: int) -> np.ndarray:
        """The square of a picture uint8 [H, W, 3], resized: uint8 [size_px, size_px, 3].

        Past the border the picture's edge pixels are repeated.
        """
        rows, above_below = _span(self.top, self.side, picture.shape[0])
        columns, beside = _span(self.left, self.side, picture.shape[1])
        square = picture[rows, columns]
        if square.shape[:2] != (self.side, self.side):
            square = np.pad(square, (above_below, beside, (0, 0)), mode="edge")
        return _resized(square, size_px)

    def paste(self, picture: np.ndarray, patch: np.ndarray) -> np.ndarray:
        """A copy of a picture uint8 [H, W, 3] with a patch uint8 [S, S, 3] in this square, its edge faded in."""
        inside = np.arange(self.side) + 0.5
        ramp = (np.minimum(inside, self.side - inside) / (_FEATHER * self.side)).clip(0, 1)
        weight = (np.minimum.outer(ramp, ramp)[..., None]).astype(np.float32)  # [side, side, 1]
        height, width = picture.shape[:2]
        # The part of the square that is in the picture, counted in the picture and in the square.
        y, x = max(self.top, 0), max(self.left, 0)
        below, right = max(min(self.top + self.side, height), y), max(min(self.left + self.side, width), x)
        seen = slice(y - self.top, below - self.top), slice(x - self.left, right - self.left)
        over, weight = _resized(patch, self.side)[seen].astype(np.float32), weight[seen]
        result = picture.copy()
        under = result[y:below, x:right]
        under[...] = np.rint(under + (over - under) * weight).astype(np.uint8)
        return result


def region_pixels(region: tuple[float, ...], side: int) -> tuple[slice, slice]:
    """The rows and columns of a region in a square of `side` pixels."""
    top, bottom, left, right = (round(part * side) for part in region)
    return slice(top, bottom), slice(left, right)


def crop_box(faces: Face | Sequence[Face]) -> CropBox:
    """The square around a face, or the steady one around the face of a clip's frames: the median of theirs.

    Raises:
        ValueError: no faces.
    """
    faces = [faces] if isinstance(faces, Face) else faces
    if not faces:
        raise ValueError("no faces to crop around")
    left, top, right, bottom = np.array([face.box for face in faces]).T  # each [T]
    size = np.maximum(right - left, bottom - top)
    x, y, side = (float(np.median(v)) for v in ((left + right) / 2, (top + bottom) / 2, MARGIN * size))
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _span(start: int, side: int, length: int) -> tuple[slice, tuple[int, int]]:
    """Which of a row's `length` pixels a stretch covers, one at least, and how often either end is to be repeated."""
    first = min(max(start, 0), length - 1)
    last = max(min(start + side, length), first + 1)
    before = min(max(-start, 0), side - 1)
    return slice(first, last), (before, side - before - (last - first))


def _resized(square: np.ndarray, size_px: int) -> np.ndarray:
    if square.shape[0] == size_px:
        return np.ascontiguousarray(square)
    # Hamming averages over the area a new pixel covers, as a box does, but without a box's dislocations.
    how = Image.Resampling.HAMMING if size_px < square.shape[0] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), how))
