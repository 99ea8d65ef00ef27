"""Any picture of a face to the portrait that acts: read, upright, its face found."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xactor.faces import CropBox, Face, FaceLandmarker, crop_box

# Ours: below the size at which Pillow speaks of a decompression bomb; a small file must not fill the memory.
MOST_PIXELS = 89_000_000
# Larger pictures are reduced on reading: no video that is made from one is larger.
LONGEST_SIDE_PX = 4096
LEAST_SIDE_PX = 32
# The model does not find faces under about a seventh of the picture; parts of these sides are searched after the whole.
_CLOSER = (1 / 2, 1 / 4)
_LEAST_PART_PX = 96
# Ours: a pasted-back picture's longer side, which every player decodes.
PASTE_BACK_SIDE_PX = 1920
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
_NEW_SUBFILE_TYPE, _PREVIEW = 254, 1  # TIFF: this page is a small version of another


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A picture and the face in it that acts.

    Attributes:
        picture: uint8 [H, W, 3] RGB.
        box: the square around the face.
        notes: what a user should know, such as that other faces were left out.
    """

    picture: np.ndarray
    box: CropBox
    notes: tuple[str, ...] = ()


def read_image(source: str | Path | bytes | Image.Image) -> np.ndarray:
    """A picture of any kind that Pillow reads, as one sees it: uint8 [H, W, 3] RGB, upright.

    Transparency is put on white, 16 bits become 8, of an animation the first frame is taken. A side longer than 4096
    px is reduced to that.

    Raises:
        ValueError: naming the file and what is wrong with it: missing, no picture, damaged, a camera's raw file, over
            89 megapixels, under 32 px.
    """
    if isinstance(source, Image.Image):
        return _as_seen(source, "the picture")
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _as_seen(image, name)
    except UnidentifiedImageError as error:
        empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0
        what = "it is empty" if empty else "not a picture of any format that Pillow reads"
        raise ValueError(f"{name}: {what}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name}: more than {MOST_PIXELS / 1e6:.0f} megapixels, which is the most"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from error


def find_portrait(picture: np.ndarray, landmarker: FaceLandmarker | None = None) -> Portrait:
    """The portrait in a picture uint8 [H, W, 3] RGB: of several faces the largest.

    A face may be as small as a twenty-fifth of the picture's longer side.

    Raises:
        ValueError: no face.
    """
    height, width = picture.shape[:2]
    faces = search_faces(picture, landmarker or FaceLandmarker(most_faces=5))
    if not faces:
        raise ValueError(f"no face is found in the picture of {width}x{height} px")
    left, top, right, bottom = faces[0].box
    notes = []
    if len(faces) > 1:
        notes.append(f"{len(faces)} faces are found, the largest is taken")
    if left < 0 or top < 0 or right > width or bottom > height:
        notes.append("the face reaches past the picture's border, where the edge's pixels are repeated")
    return Portrait(picture=picture, box=crop_box(faces[0]), notes=tuple(notes))


def sized_for_video(picture: np.ndarray) -> np.ndarray:
    """Of a size that h264 takes: even, and not too large."""
    height, width = picture.shape[:2]
    shrink = min(1.0, PASTE_BACK_SIDE_PX / max(height, width))
    height, width = (max(2, round(side * shrink) // 2 * 2) for side in (height, width))
    if shrink < 1:
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return np.ascontiguousarray(picture[:height, :width])


def search_faces(picture: np.ndarray, landmarker: FaceLandmarker) -> list[Face]:
    """The faces in a picture, the largest first: in the whole or, where it shows none, in ever smaller parts of it."""
    found = landmarker.detect(picture)
    for part in _CLOSER:
        side = round(part * max(picture.shape[:2]))
        if found or side < _LEAST_PART_PX:
            break
        for top, left in _corners(picture, side):
            inside = np.ascontiguousarray(picture[top : top + side, left : left + side])
            shift = np.array((left, top, 0), np.float32)
            for face in landmarker.detect(inside):
                face = replace(face, points=face.points + shift)
                # Parts overlap by half: one face may be seen in several, and is cut in those where it is smaller.
                same = [
                    other for other in found if _centre_inside(face, other) or _centre_inside(other, face)
                ]
                if all(face.area > other.area for other in same):
                    found = [other for other in found if other not in same] + [face]
    return sorted(found, key=lambda face: -face.area)


def _corners(picture: np.ndarray, side: int) -> Iterator[tuple[int, int]]:
    """Top and left of squares of that side that cover a picture, each half over the next."""
    rows, columns = (range(0, max(length - side, 0) + 1, max(side // 2, 1)) for length in picture.shape[:2])
    for top in rows:
        for left in columns:
            yield top, left


def _centre_inside(face: Face, other: Face) -> bool:
    left, top, right, bottom = face.box
    x, y = (left + right) / 2, (top + bottom) / 2
    left, top, right, bottom = other.box
    return left < x < right and top < y < bottom


def _as_seen(image: Image.Image, name: str) -> np.ndarray:
    width, height = image.size
    if width * height > MOST_PIXELS:
        most = f"{MOST_PIXELS / 1e6:.0f} megapixels"
        raise ValueError(f"{name}: {width}x{height} px are more than {most}, which is the most")
    if image.format == "TIFF" and image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _PREVIEW:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name}: a camera's raw file, of which only a preview can be read; save it as JPEG or PNG"
        )
    try:
        image.draft("RGB", (LONGEST_SIDE_PX, LONGEST_SIDE_PX))  # a JPEG is reduced while it is decoded
        image.load()
        image = ImageOps.exif_transpose(image)
        image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
        picture = np.array(_rgb(image))  # [H, W, 3]
    except _DAMAGED as error:
        raise ValueError(f"{name}: damaged or cut off ({error})") from error
    height, width = picture.shape[:2]
    if min(height, width) < LEAST_SIDE_PX:
        raise ValueError(f"{name}: sides must be at least {LEAST_SIDE_PX} px, got {width}x{height}")
    return picture


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # one channel, of 16 bits or more or of fractions
        values = np.asarray(image, np.float32)
        white = 65_535 if image.mode[0] == "I" else 1 if values.max(initial=0) <= 1 else 255
        image = Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
