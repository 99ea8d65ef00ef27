"""Cut a square around a face out of a picture, and paste it back. Models see only this square."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xactor.faces.landmarker import Face

# Ours: the side of the square is this many times the longer side of the landmarks' box. The box reaches from the
# hairline to the chin, so the square has room for hair, for a dropped jaw and for a head that moves by a fifth of its
# size. The mouth still takes up a sixth of the square's width.
MARGIN = 1.7
# Regions of the whole face and of the mouth in that square: top, bottom, left and right as fractions of its side.
FACE_REGION = (0.18, 0.85, 0.2, 0.8)
MOUTH_REGION = (0.55, 0.8, 0.32, 0.68)
# Width of the border over which a pasted patch fades into the picture, as a fraction of the patch's side.
_FEATHER = 1 / 12


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """Hold the position and size of a square in a picture, in whole pixels.

    The square may extend past the picture's border.
    """

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
        """Return the square that shows the same content after the picture was resized by `factor`."""
        left, top, side = (round(value * factor) for value in (self.left, self.top, self.side))
        return CropBox(left=left, top=top, side=max(side, 1))

    def outside(self, height: int, width: int) -> float:
        """Return the fraction of the square, 0 to 1, that lies outside a picture of height x width pixels."""
        rows = min(self.top + self.side, height) - max(self.top, 0)
        columns = min(self.left + self.side, width) - max(self.left, 0)
        return 1 - max(rows, 0) * max(columns, 0) / self.side**2

    def inside(self, height: int, width: int) -> "CropBox":
        """Return the square moved into a picture of height x width pixels, and reduced where it is too large."""
        side = min(self.side, height, width)
        # A reduced square keeps its centre as far as the picture allows.
        left, top = (start + (self.side - side) // 2 for start in (self.left, self.top))
        return CropBox(left=min(max(left, 0), width - side), top=min(max(top, 0), height - side), side=side)

    def cut(self, picture: np.ndarray, size_px: int) -> np.ndarray:
        """Cut the square out of a picture uint8 [H, W, 3] and resize it to uint8 [size_px, size_px, 3].

        Pixels outside the picture repeat the picture's edge.
        """
        rows, above_below = _span(self.top, self.side, picture.shape[0])
        columns, left_right = _span(self.left, self.side, picture.shape[1])
        square = picture[rows, columns]
        if square.shape[:2] != (self.side, self.side):
            square = np.pad(square, (above_below, left_right, (0, 0)), mode="edge")
        return _resized(square, size_px)

    def paste(self, picture: np.ndarray, patch: np.ndarray) -> np.ndarray:
        """Return a copy of a picture uint8 [H, W, 3] with a patch uint8 [S, S, 3] in this square.

        The patch is resized to the square, and its border fades into the picture.
        """
        pixel = np.arange(self.side) + 0.5
        # Weight of the patch along one axis: 0 at its edges, 1 inside.
        ramp = (np.minimum(pixel, self.side - pixel) / (_FEATHER * self.side)).clip(0, 1)
        weight = (np.minimum.outer(ramp, ramp)[..., None]).astype(np.float32)  # [side, side, 1]
        height, width = picture.shape[:2]
        # The part of the square that is inside the picture, first in the picture's coordinates, then in the square's.
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = max(min(self.top + self.side, height), top)
        right = max(min(self.left + self.side, width), left)
        in_picture = slice(top, bottom), slice(left, right)
        in_square = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        new, weight = _resized(patch, self.side)[in_square].astype(np.float32), weight[in_square]
        result = picture.copy()
        old = result[in_picture]
        result[in_picture] = np.rint(old + (new - old) * weight).astype(np.uint8)
        return result


def region_pixels(region: tuple[float, ...], side: int) -> tuple[slice, slice]:
    """Return the rows and columns of a region, such as MOUTH_REGION, in a square of `side` x `side` pixels."""
    top, bottom, left, right = (round(fraction * side) for fraction in region)
    return slice(top, bottom), slice(left, right)


def crop_box(faces: Face | Sequence[Face]) -> CropBox:
    """Return the square around a face. Given the faces of a clip's frames, return one square for the whole clip.

    The centre and the side of a clip's square are the medians over the frames.

    Raises:
        ValueError: There are no faces.
    """
    faces = [faces] if isinstance(faces, Face) else faces
    if not faces:
        raise ValueError("no faces to crop around")
    left, top, right, bottom = np.array([face.box for face in faces]).T  # each [T]
    size = np.maximum(right - left, bottom - top)
    x, y = float(np.median((left + right) / 2)), float(np.median((top + bottom) / 2))
    side = float(np.median(MARGIN * size))
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _span(start: int, side: int, length: int) -> tuple[slice, tuple[int, int]]:
    """Return the rows (or columns) of a picture that a square covers, and the padding before and after them.

    At least one row is returned, because padding repeats a row of the picture. A square that lies outside the picture
    gets the nearest row.

    Args:
        start: First row of the square; negative if it begins before the picture.
        side: Number of rows of the square.
        length: Number of rows of the picture.
    """
    first = min(max(start, 0), length - 1)
    stop = max(min(start + side, length), first + 1)
    # At most side - 1, because one of the square's rows comes from the picture.
    before = min(max(-start, 0), side - 1)
    return slice(first, stop), (before, side - before - (stop - first))


def _resized(square: np.ndarray, size_px: int) -> np.ndarray:
    """Resize a square picture uint8 [S, S, 3] to uint8 [size_px, size_px, 3]."""
    if square.shape[0] == size_px:
        return np.ascontiguousarray(square)
    # When the picture gets smaller, each new pixel must be an average over its area. The Hamming filter averages as a
    # box filter does, but it does not shift the picture.
    resampling = Image.Resampling.HAMMING if size_px < square.shape[0] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), resampling))
