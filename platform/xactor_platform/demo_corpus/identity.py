"""List the people of the demo corpus, each with a voice.

A person is drawn by a program, or is a puppet: a photograph or painting of a face that a program animates.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from xactor.controls import CONTROL_COUNT
from xactor.faces import CropBox, Face, FaceLandmarker, crop_box
from xactor.portrait import read_image
from xactor_platform.demo_corpus.drawn import DrawnFace
from xactor_platform.demo_corpus.puppet import Puppet
from xactor_platform.demo_corpus.speech import Voice

PHOTO = "astronaut"
# Left, top and side, in pixels, of the square around the face in scikit-image's photograph of the astronaut Eileen
# Collins (NASA, public domain).
_PHOTO_SQUARE = (135, 33, 180)
# Side, in pixels, of the pictures in which faces are detected.
DETECTED_PX = 256
# Side, in pixels, of the stills that puppets are made of.
_STILL_PX = 384
# Names of people who are not used for training. The photograph is one of them, to show how a renderer handles a real
# face that it never saw.
HELD_OUT = ("drawn-007", PHOTO)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Describe one person of the demo corpus."""

    name: str
    """Name, which the shards state as the speaker."""
    voice: Voice
    """Settings of the synthetic voice."""
    still: str | None = None
    """Path of the still face that the person is a puppet of. None for drawn people and the photographed person."""


def training_identities(count: int, stills: Sequence[Path] = ()) -> list[Identity]:
    """Return `count` people to train on, none of them held out.

    Args:
        count: number of people.
        stills: still faces. Every second person is a puppet of one of them, until all stills are used.
    """
    if count < 1:
        raise ValueError(f"identities must be >= 1, got {count}")
    # The range has one seed more than people, because it may contain the seed of the held-out person.
    seeds = (seed for seed in range(count + 1) if f"drawn-{seed:03d}" not in HELD_OUT)
    puppets = iter(stills)
    people = []
    for number in range(count):
        still = next(puppets, None) if number % 2 == 0 else None
        if still is None:
            seed = next(seeds)
            people.append(Identity(name=f"drawn-{seed:03d}", voice=_voice(seed)))
        else:
            people.append(_puppet(still))
    return people


def held_out_identities(stills: Sequence[Path] = ()) -> list[Identity]:
    """Return a drawn person, the photographed person and puppets of still faces. They are never trained on."""
    return [
        Identity(name=HELD_OUT[0], voice=_voice(7)),
        Identity(name=PHOTO, voice=Voice(shift=1.19)),
        *map(_puppet, stills),
    ]


def split_stills(folder: str | Path, say: Callable[[str], None]) -> tuple[list[Path], list[Path]]:
    """Return the still faces of a folder: first those to train on, then those that are held out, every sixth one.

    Args:
        folder: folder of pictures.
        say: is called with a line for each picture that is left out, with the reason.

    Raises:
        ValueError: the folder holds no picture that can be animated.
    """
    found = sorted(
        path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    usable = []
    for path in found:
        try:
            # The size of the frames does not matter, because no frame is rendered.
            _puppet_face(str(path), 32)
            usable.append(path)
        except ValueError as error:
            say(f"left out: {error}")
    if not usable:
        raise ValueError(
            f"{folder}: holds no face (.jpg, .png) that can be animated, of {len(found)} pictures"
        )
    return [path for n, path in enumerate(usable) if n % 6 != 5], usable[5::6]


def render_frame(identity: Identity, controls: np.ndarray, size_px: int = 256) -> np.ndarray:
    """Render one frame of a person, uint8 [S, S, 3] RGB.

    Args:
        identity: the person.
        controls: a row of the control track, which describes the motion of the face, [57].
        size_px: side of the frame in pixels.
    """
    return _face(identity.name, identity.still, size_px).render(controls)


@lru_cache(maxsize=16)
def find_crop(identity: Identity, size_px: int) -> CropBox | None:
    """Return the square around a person's resting face, in pixels of frames with the side `size_px`.

    Return None if no face is found.
    """
    face = find_face(render_frame(identity, np.zeros(CONTROL_COUNT, np.float32), size_px))
    return crop_box(face).scaled(size_px / DETECTED_PX) if face else None


def find_face(picture: np.ndarray) -> Face | None:
    """Return the face in a frame uint8 [S, S, 3], None if there is none.

    Places are in pixels of the frame after resizing it to the side DETECTED_PX.
    """
    faces = _landmarker().detect(cv2.resize(picture, (DETECTED_PX, DETECTED_PX)))
    return faces[0] if faces else None


@lru_cache(maxsize=16)
def _face(name: str, still: str | None, size_px: int) -> DrawnFace | Puppet:
    if name == PHOTO or still is not None:
        return _puppet_face(still, size_px)
    return DrawnFace(int(name.removeprefix("drawn-")), size_px)


def _puppet_face(still: str | None, size_px: int) -> Puppet:
    """Return the puppet of a still, or the puppet of the photograph if `still` is None.

    Raises:
        ValueError: the still cannot be read, shows no face, or cannot be animated.
    """
    picture = _photograph() if still is None else read_image(still)
    side = min(picture.shape[:2])
    # If the still is not square, use the square in its middle.
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    shrinks = side > _STILL_PX
    square = cv2.resize(
        picture[top : top + side, left : left + side],
        (_STILL_PX, _STILL_PX),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
    )
    found = _landmarker().detect(square)
    if not found:
        raise ValueError(f"{still or PHOTO}: no face is found")
    try:
        return Puppet(square, found[0], size_px)
    except ValueError as error:
        raise ValueError(f"{still or PHOTO}: {error}") from error


def _photograph() -> np.ndarray:
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ValueError(
            "the photograph needs scikit-image: run pip install '.[demo]' in the checkout"
        ) from error
    left, top, side = _PHOTO_SQUARE
    return astronaut()[top : top + side, left : left + side]


def _puppet(still: Path) -> Identity:
    # The file's name determines the voice, so that the order of the stills does not matter.
    number = int.from_bytes(hashlib.sha256(still.stem.encode()).digest()[:3], "big")
    return Identity(name=f"still-{still.stem}", voice=_voice(number), still=str(still))


@lru_cache(maxsize=1)
def _landmarker() -> FaceLandmarker:
    return FaceLandmarker(max_faces=1)


def _voice(seed: int) -> Voice:
    """Return the voice of the person with a seed. Voices differ slightly between people.

    The pitch is a woman's or a man's, to fit the hair of the drawn person with the same seed.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 403]))
    # Positions of the hair styles "long", "bun" and "bob" in `looks.STYLES`.
    high = seed % 6 in (1, 2, 4)
    return Voice(
        shift=float((1.17 if high else 0.97) + rng.uniform(-0.06, 0.06)), pace=float(rng.uniform(0.95, 1.08))
    )
