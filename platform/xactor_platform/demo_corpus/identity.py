"""List the people of the demo corpus: drawn people and one real photograph, each with a voice."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from xactor.controls import CONTROL_COUNT
from xactor.faces import CropBox, FaceLandmarker, crop_box
from xactor_platform.demo_corpus.drawn import DrawnFace
from xactor_platform.demo_corpus.photo import PhotoFace
from xactor_platform.demo_corpus.speech import Voice

PHOTO = "astronaut"
# Faces are detected in pictures of this size.
DETECTED_PX = 256
# The only photograph is held out, to show how a renderer handles a real face that it never saw.
HELD_OUT = ("drawn-007", PHOTO)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Describe one person of the demo corpus."""

    name: str
    """Name, also the speaker in the shards."""
    voice: Voice
    """Settings of the synthetic voice."""

    @property
    def face_seed(self) -> int | None:
        """Return the seed of a drawn face, or None for the photograph."""
        return None if self.name == PHOTO else int(self.name.removeprefix("drawn-"))


def training_identities(count: int) -> list[Identity]:
    """Return `count` drawn people to train on, none of them held out."""
    if count < 1:
        raise ValueError(f"identities must be >= 1, got {count}")
    seeds = [seed for seed in range(count + 1) if f"drawn-{seed:03d}" not in HELD_OUT][:count]
    return [Identity(name=f"drawn-{seed:03d}", voice=_voice(seed)) for seed in seeds]


def held_out_identities() -> list[Identity]:
    """Return a drawn person and the photographed person. Both are never trained on."""
    return [Identity(name=HELD_OUT[0], voice=_voice(7)), Identity(name=PHOTO, voice=Voice(shift=1.19))]


def render_frame(identity: Identity, controls: np.ndarray, size_px: int = 256) -> np.ndarray:
    """Render one frame of a person, uint8 [S, S, 3] RGB, from a row of controls [57]. It depends on nothing else."""
    return _face(identity.face_seed, size_px).render(controls)


@lru_cache(maxsize=16)
def find_crop(identity: Identity, size_px: int) -> CropBox | None:
    """Return the square around a person's face at rest, in frames of side `size_px`. None if no face is found."""
    still = render_frame(identity, np.zeros(CONTROL_COUNT, np.float32), size_px)
    faces = _landmarker().detect(cv2.resize(still, (DETECTED_PX, DETECTED_PX)))
    return crop_box(faces[0]).scaled(size_px / DETECTED_PX) if faces else None


@lru_cache(maxsize=16)
def _face(seed: int | None, size_px: int) -> DrawnFace | PhotoFace:
    return PhotoFace(size_px) if seed is None else DrawnFace(seed, size_px)


@lru_cache(maxsize=1)
def _landmarker() -> FaceLandmarker:
    return FaceLandmarker(max_faces=1)


def _voice(seed: int) -> Voice:
    """Return a voice with a woman's or a man's pitch, to fit the drawn style. It differs slightly between people."""
    rng = np.random.Generator(np.random.PCG64([seed, 403]))
    # Places of "long", "bun" and "bob" in `looks.STYLES`.
    high = seed % 6 in (1, 2, 4)
    return Voice(
        shift=float((1.17 if high else 0.97) + rng.uniform(-0.06, 0.06)), pace=float(rng.uniform(0.95, 1.08))
    )
