"""Who speaks in the demo corpus: drawn people, and one real photograph, each with a voice."""

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
DETECTED_PX = 256  # at this size faces are looked for
# The photograph is held out: there is one only, and what a renderer makes of a real face it never saw is the question.
HELD_OUT = ("drawn-007", PHOTO)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One person of the demo corpus. `name` is also the speaker in the shards."""

    name: str
    voice: Voice

    @property
    def face_seed(self) -> int | None:
        """The seed of a drawn face; None is the photograph."""
        return None if self.name == PHOTO else int(self.name.removeprefix("drawn-"))


def training_identities(count: int) -> list[Identity]:
    """Drawn people to train on, all unlike those held out."""
    if count < 1:
        raise ValueError(f"identities must be >= 1, got {count}")
    seeds = [seed for seed in range(count + 1) if f"drawn-{seed:03d}" not in HELD_OUT][:count]
    return [Identity(name=f"drawn-{seed:03d}", voice=_voice(seed)) for seed in seeds]


def held_out_identities() -> list[Identity]:
    """A drawn person and the photograph of a real one, neither ever trained on."""
    return [Identity(name=HELD_OUT[0], voice=_voice(7)), Identity(name=PHOTO, voice=Voice(shift=1.19))]


def render_frame(identity: Identity, controls: np.ndarray, size_px: int = 256) -> np.ndarray:
    """One frame of a person acting: a row of controls [57] to uint8 [S, S, 3] RGB. The same for the same input."""
    return _face(identity.face_seed, size_px).render(controls)


@lru_cache(maxsize=16)
def find_crop(identity: Identity, size_px: int) -> CropBox | None:
    """The square around a person's face at rest, in frames of that size; None where no face is found in them."""
    still = render_frame(identity, np.zeros(CONTROL_COUNT, np.float32), size_px)
    faces = _landmarker().detect(cv2.resize(still, (DETECTED_PX, DETECTED_PX)))
    return crop_box(faces[0]).scaled(size_px / DETECTED_PX) if faces else None


@lru_cache(maxsize=16)
def _face(seed: int | None, size_px: int) -> DrawnFace | PhotoFace:
    return PhotoFace(size_px) if seed is None else DrawnFace(seed, size_px)


@lru_cache(maxsize=1)
def _landmarker() -> FaceLandmarker:
    return FaceLandmarker(most_faces=1)


def _voice(seed: int) -> Voice:
    """Women's and men's pitch by the drawn style, a little different for each."""
    rng = np.random.Generator(np.random.PCG64([seed, 403]))
    high = seed % 6 in (1, 2, 4)
    return Voice(
        shift=float((1.17 if high else 0.97) + rng.uniform(-0.06, 0.06)), pace=float(rng.uniform(0.95, 1.08))
    )
