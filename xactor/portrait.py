"""Read any picture of a face, turn it upright and find the face to animate."""

import io
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from xactor.faces import CropBox, Face, FaceLandmarker, crop_box, search_faces

# Ours: just below Pillow's limit for decompression bombs, because a small file may decode to a huge picture.
MAX_PIXELS = 89_000_000
# Larger pictures are reduced while they are read, because no video is larger.
MAX_SIDE_PX = 4096
MIN_SIDE_PX = 32
# Formats of pictures that are read, by Pillow's names. Pillow knows more: for some, such as EPS, it starts other
# programs on the file, and others are rare, so that faults of their decoders stay unnoticed.
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "HEIF",
    "ICNS",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
# Ours: maximum side of a video with the face pasted back. All players decode this size.
PASTE_BACK_SIDE_PX = 1920
# Angles in degrees. A face is upright if its roll, the rotation in the picture's plane, is below `_UPRIGHT`. Ours: if a
# face is turned to the side by more than `_MAX_YAW`, the portrait has a note.
_UPRIGHT, _MAX_YAW = 45, 35
# Side in pixels of the square picture of a face that is turned to find out whether the face stands on its head.
_TURNED_PX = 256
# Landmarks at the outer corners of the eyes, the picture's left one first.
_OUTER_EYE_CORNERS = (33, 263)
# Errors that Pillow raises for damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
# TIFF's tag NewSubfileType, and its flag for a page that is a reduced version of another page.
_NEW_SUBFILE_TYPE, _PREVIEW = 254, 1


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Hold a picture and the face in it to animate."""

    picture: np.ndarray
    """The picture, uint8 [H, W, 3] RGB."""
    box: CropBox
    """The square around the face."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, such as that other faces were ignored."""


def read_image(source: str | Path | bytes | Image.Image | np.ndarray) -> np.ndarray:
    """Read a picture in any of `FORMATS`, upright: uint8 [H, W, 3] RGB.

    Transparent pixels are blended with white, 16 bits become 8, and the first frame of an animation is used. A picture
    with a side longer than 4096 px is reduced to that length.

    Args:
        source: A path, a file's content, an open picture, or uint8 [H, W, 3].

    Raises:
        ValueError: The file is missing, is not a picture in any of `FORMATS`, is damaged, is a camera's raw file, has
            more than 89 megapixels, or has a side under 32 px. The message names the file.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise ValueError(f"the picture must be uint8 [H, W, 3], got {source.dtype} {list(source.shape)}")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture")
    name = "the picture" if isinstance(source, bytes) else str(source)
    _register_heif()
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(opened, formats=FORMATS) as image:
            return _decoded(image, name)
    except UnidentifiedImageError as error:
        empty = not source if isinstance(source, bytes) else os.path.getsize(source) == 0
        reason = "it is empty" if empty else f"not a picture of any format that is read: {', '.join(FORMATS)}"
        raise ValueError(f"{name}: {reason}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: more than {MAX_PIXELS / 1e6:.0f} megapixels, the maximum") from error
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from error


@cache
def _register_heif() -> None:
    """Let Pillow read HEIF, the format of iPhones."""
    # Without the package, the message about a HEIF file names the formats that are read.
    with suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener()


def find_portrait(picture: np.ndarray, landmarker: FaceLandmarker | None = None) -> Portrait:
    """Find the face to animate in a picture uint8 [H, W, 3] RGB: the largest one.

    A face may be as small as a twenty-fifth of the picture's longer side. If the face lies on its side or stands on its
    head, the picture is turned by quarter turns.

    Args:
        picture: The picture.
        landmarker: Finds faces; None means a new one.

    Raises:
        ValueError: There is no face.
    """
    landmarker = landmarker or FaceLandmarker(max_faces=5)
    faces, notes = search_faces(picture, landmarker), []
    turns = _quarter_turns(picture, faces, landmarker)
    turned = np.ascontiguousarray(np.rot90(picture, turns))
    found = search_faces(turned, landmarker) if turns else []
    if found:
        picture, faces = turned, found
        notes.append(f"the picture is turned by {abs(turns) * 90} degrees, so that the face is upright")
    height, width = picture.shape[:2]
    if not faces:
        raise ValueError(f"no face is found in the picture of {width}x{height} px")
    left, top, right, bottom = faces[0].box
    yaw = abs(_yaw(faces[0]))
    if yaw > _MAX_YAW:
        notes.append(f"the face is turned to the side by {yaw:.0f} degrees: one that looks ahead acts better")
    if len(faces) > 1:
        notes.append(f"{len(faces)} faces are found, the largest is used")
    if left < 0 or top < 0 or right > width or bottom > height:
        notes.append("the face reaches past the picture's border, where the edge's pixels are repeated")
    return Portrait(picture=picture, box=crop_box(faces[0]), notes=tuple(notes))


def sized_for_video(picture: np.ndarray) -> np.ndarray:
    """Reduce a picture uint8 [H, W, 3] to a size that h264 accepts: even sides, of at most 1920 px."""
    height, width = picture.shape[:2]
    shrink = min(1.0, PASTE_BACK_SIDE_PX / max(height, width))
    # Round down to even numbers.
    height, width = (max(2, round(side * shrink) // 2 * 2) for side in (height, width))
    if shrink < 1:
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    # Cut off an odd last row or column.
    return np.ascontiguousarray(picture[:height, :width])


def _quarter_turns(picture: np.ndarray, faces: list[Face], landmarker: FaceLandmarker) -> int:
    """Return the counter-clockwise quarter turns, -1 to 2, that bring the largest face of a picture upright."""
    if not faces:
        # The model may find no face in a picture that stands on its head.
        for turns in (2, 1, -1):
            found = landmarker.detect(np.ascontiguousarray(np.rot90(picture, turns)))
            if found and abs(_roll(found[0])) < _UPRIGHT:
                return turns
        return 0
    roll = _roll(faces[0])
    if abs(roll) >= _UPRIGHT:
        return 2 if abs(roll) > 180 - _UPRIGHT else round(roll / 90)
    # The model may take a face that stands on its head for an upright face, but seldom makes such an error with a face
    # that lies on its side. So turn the face to its side. If it was upright, its roll is -90 degrees after a turn to
    # the left, and 90 degrees after a turn to the right. If it stood on its head, its roll is the opposite.
    square = crop_box(faces[0]).cut(picture, _TURNED_PX)
    for turns in (1, -1):
        found = landmarker.detect(np.ascontiguousarray(np.rot90(square, turns)))
        if not found or turns * _roll(found[0]) < _UPRIGHT:
            return 0
    return 2


def _roll(face: Face) -> float:
    """Return the clockwise angle of the line through the outer corners of a face's eyes, in degrees."""
    x, y = face.points[_OUTER_EYE_CORNERS[1], :2] - face.points[_OUTER_EYE_CORNERS[0], :2]
    return float(np.degrees(np.arctan2(y, x)))


def _yaw(face: Face) -> float:
    """Return the angle by which a face is turned to the side, in degrees; 0 looks at the camera."""
    forward = face.matrix[:3, 2]
    return float(np.degrees(np.arctan2(forward[0], forward[2])))


def _decoded(image: Image.Image, name: str) -> np.ndarray:
    """Return an open picture upright, uint8 [H, W, 3]. Raises ValueError, as `read_image` does."""
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
        # `draft` reduces a JPEG while it is decoded, which saves time and memory. Other formats ignore the call.
        image.draft("RGB", (MAX_SIDE_PX, MAX_SIDE_PX))
        image.load()
        image = ImageOps.exif_transpose(image)
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        picture = np.array(_rgb(_in_srgb(image)))  # [H, W, 3]
    except _DAMAGED as error:
        raise ValueError(f"{name}: damaged or truncated ({error})") from error
    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(f"{name}: sides must be at least {MIN_SIDE_PX} px, got {width}x{height}")
    return picture


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture that names another colour space, such as Display P3, to sRGB."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # A conversion from sRGB to sRGB would only add rounding errors.
        description = ImageCms.getProfileDescription(source)
        if description.startswith("sRGB") and "linear" not in description.lower():
            return image
        # The alpha channel has no colours, so it is kept as it is.
        opaque = image.convert("RGB") if image.mode == "RGBA" else image
        converted = ImageCms.profileToProfile(
            opaque, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    # The profile is damaged, or describes another kind of picture. Viewers ignore such a profile too.
    except (ImageCms.PyCMSError, OSError):
        return image
    if converted is None:
        return image
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    elif "transparency" in image.info:
        converted.info["transparency"] = image.info["transparency"]
    return converted


def _rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB. Transparent pixels are blended with white."""
    # Modes that start with I hold one channel of 16 or 32 bits, mode F one channel of floating-point numbers.
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float32)
        if image.mode[0] == "I":
            white = 65_535
        elif values.max(initial=0) <= 1:
            white = 1
        else:
            white = 255
        image = Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
