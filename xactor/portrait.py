"""Read any picture of a face, turn it upright and find the face that acts."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xactor.faces import CropBox, Face, FaceLandmarker, crop_box

# Ours: below Pillow's bound for decompression bombs. A small file must not fill the memory.
MAX_PIXELS = 89_000_000
# Larger pictures are reduced while reading: no video is larger.
MAX_SIDE_PX = 4096
MIN_SIDE_PX = 32
# The model does not find faces smaller than about a seventh of the picture. After the whole picture, squares with these
# fractions of its longer side are searched.
_CLOSER = (1 / 2, 1 / 4)
_MIN_SQUARE_PX = 96
# Ours: bound on the longer side of a picture that the face is pasted back into. All players decode it.
PASTE_BACK_SIDE_PX = 1920
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
# TIFF: the tag and flag of a page that is a small version of another.
_NEW_SUBFILE_TYPE, _PREVIEW = 254, 1


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Hold a picture and the face in it that acts."""

    picture: np.ndarray
    """The picture, uint8 [H, W, 3] RGB."""
    box: CropBox
    """The square around the face."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, such as that other faces were ignored."""


def read_image(source: str | Path | bytes | Image.Image) -> np.ndarray:
    """Read a picture of any format that Pillow reads, upright: uint8 [H, W, 3] RGB.

    Transparent pixels are blended with white, 16 bits become 8, and the first frame of an animation is used. A side
    longer than 4096 px is reduced to that.

    Args:
        source: A path, a file's content, or an open picture.

    Raises:
        ValueError: The file is missing, no picture, damaged, a camera's raw file, over 89 megapixels or under 32 px;
            the message names it.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture")
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _decoded(image, name)
    except UnidentifiedImageError as error:
        empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0
        what = "it is empty" if empty else "not a picture of any format that Pillow reads"
        raise ValueError(f"{name}: {what}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: more than {MAX_PIXELS / 1e6:.0f} megapixels, the maximum") from error
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from error


def find_portrait(picture: np.ndarray, landmarker: FaceLandmarker | None = None) -> Portrait:
    """Find the portrait in a picture uint8 [H, W, 3] RGB: the largest face, of several.

    A face may be as small as a twenty-fifth of the picture's longer side.

    Raises:
        ValueError: There is no face.
    """
    height, width = picture.shape[:2]
    faces = search_faces(picture, landmarker or FaceLandmarker(max_faces=5))
    if not faces:
        raise ValueError(f"no face is found in the picture of {width}x{height} px")
    left, top, right, bottom = faces[0].box
    notes = []
    if len(faces) > 1:
        notes.append(f"{len(faces)} faces are found, the largest is used")
    if left < 0 or top < 0 or right > width or bottom > height:
        notes.append("the face reaches past the picture's border, where the edge's pixels are repeated")
    return Portrait(picture=picture, box=crop_box(faces[0]), notes=tuple(notes))


def sized_for_video(picture: np.ndarray) -> np.ndarray:
    """Reduce a picture uint8 [H, W, 3] to a size that h264 accepts: even, and at most 1920 px."""
    height, width = picture.shape[:2]
    shrink = min(1.0, PASTE_BACK_SIDE_PX / max(height, width))
    height, width = (max(2, round(side * shrink) // 2 * 2) for side in (height, width))
    if shrink < 1:
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return np.ascontiguousarray(picture[:height, :width])


def search_faces(picture: np.ndarray, landmarker: FaceLandmarker) -> list[Face]:
    """Find the faces in a picture, the largest first. Where the whole shows none, search ever smaller squares of it."""
    found = landmarker.detect(picture)
    for fraction in _CLOSER:
        side = round(fraction * max(picture.shape[:2]))
        if found or side < _MIN_SQUARE_PX:
            break
        for top, left in _corners(picture, side):
            inside = np.ascontiguousarray(picture[top : top + side, left : left + side])
            shift = np.array((left, top, 0), np.float32)
            for face in landmarker.detect(inside):
                face = replace(face, points=face.points + shift)
                # Squares overlap by half, so a face may be found in several. Where it is smaller, it is cut off.
                same = [
                    other for other in found if _centre_inside(face, other) or _centre_inside(other, face)
                ]
                if all(face.area > other.area for other in same):
                    found = [other for other in found if other not in same] + [face]
    return sorted(found, key=lambda face: -face.area)


def _corners(picture: np.ndarray, side: int) -> Iterator[tuple[int, int]]:
    """Yield top and left of squares of a side that cover a picture, each half over the next."""
    rows, columns = (range(0, max(length - side, 0) + 1, max(side // 2, 1)) for length in picture.shape[:2])
    for top in rows:
        for left in columns:
            yield top, left


def _centre_inside(face: Face, other: Face) -> bool:
    left, top, right, bottom = face.box
    x, y = (left + right) / 2, (top + bottom) / 2
    left, top, right, bottom = other.box
    return left < x < right and top < y < bottom


def _decoded(image: Image.Image, name: str) -> np.ndarray:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name}: {width}x{height} px are more than {MAX_PIXELS / 1e6:.0f} megapixels, the maximum"
        )
    if image.format == "TIFF" and image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _PREVIEW:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name}: a camera's raw file, of which only a preview can be read; save it as JPEG or PNG"
        )
    try:
        # A JPEG is reduced while it is decoded.
        image.draft("RGB", (MAX_SIDE_PX, MAX_SIDE_PX))
        image.load()
        image = ImageOps.exif_transpose(image)
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        picture = np.array(_rgb(image))  # [H, W, 3]
    except _DAMAGED as error:
        raise ValueError(f"{name}: damaged or truncated ({error})") from error
    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(f"{name}: sides must be at least {MIN_SIDE_PX} px, got {width}x{height}")
    return picture


def _rgb(image: Image.Image) -> Image.Image:
    # One channel of 16 or 32 bits, or of floating-point numbers.
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float32)
        white = 65_535 if image.mode[0] == "I" else 1 if values.max(initial=0) <= 1 else 255
        image = Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
