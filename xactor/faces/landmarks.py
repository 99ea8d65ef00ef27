"""Choose the face landmarks by which the renderer moves a portrait, and give their mean places in a face crop.

The chosen landmarks are points of MediaPipe's face mesh that outline lips, eyes, brows, nose and face. A face crop is
the square around a face that the models see; see crop.py.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np

from xactor.faces.crop import CropBox
from xactor.faces.landmarker import Face, FaceLandmarker

_log = logging.getLogger(__name__)

# Each row is (number, mirrored number, x, y). The first two are the numbers of a landmark and of its mirror image in
# MediaPipe's mesh. A landmark on the face's midline is its own mirror image. (x, y) is the landmark's mean place in a
# face crop: x to the right and y down from the crop's centre, in thousandths of half the crop's side. The means are
# those of the faces of the demo corpus, made symmetric.
_TABLE = (
    (61, 291, -197, 269), (146, 375, -179, 294), (91, 321, -151, 319), (181, 405, -111, 344), (84, 314, -59, 360),
    (17, 17, 0, 365), (185, 409, -178, 254), (40, 270, -151, 239), (39, 269, -112, 224), (37, 267, -57, 211),
    (0, 0, 0, 221), (78, 308, -180, 269), (95, 324, -152, 279), (88, 318, -126, 285), (178, 402, -91, 290),
    (87, 317, -49, 294), (14, 14, 0, 296), (191, 415, -152, 266), (80, 310, -125, 262), (81, 311, -90, 260),
    (82, 312, -48, 260), (13, 13, 0, 262), (33, 263, -328, -229), (7, 249, -313, -211), (163, 390, -296, -200),
    (144, 373, -270, -191), (145, 374, -231, -187), (153, 380, -190, -191), (154, 381, -153, -198),
    (155, 382, -128, -202), (133, 362, -116, -207), (173, 398, -130, -223), (157, 384, -160, -249),
    (158, 385, -201, -268), (159, 386, -242, -273), (160, 387, -281, -266), (161, 388, -305, -253),
    (246, 466, -319, -241), (46, 276, -397, -334), (53, 283, -357, -370), (52, 282, -298, -387),
    (65, 295, -213, -380), (55, 285, -96, -338), (70, 300, -420, -355), (63, 293, -378, -400), (105, 334, -313, -424),
    (66, 296, -221, -420), (107, 336, -112, -402), (10, 10, 0, -597), (109, 338, -133, -595), (67, 297, -248, -579),
    (103, 332, -352, -543), (54, 284, -423, -484), (21, 251, -470, -404), (162, 389, -496, -314),
    (127, 356, -507, -204), (234, 454, -503, -99), (93, 323, -493, 10), (132, 361, -473, 126), (58, 288, -440, 250),
    (172, 397, -394, 348), (136, 365, -343, 420), (150, 379, -277, 483), (149, 378, -221, 527), (176, 400, -161, 565),
    (148, 377, -91, 594), (152, 152, 0, 603), (168, 168, 0, -244), (6, 6, 0, -181), (197, 197, 0, -129),
    (195, 195, 0, -84), (5, 5, 0, -36), (4, 4, 0, 22), (1, 1, 0, 68), (2, 2, 0, 116), (98, 327, -112, 103),
    (64, 294, -126, 76), (48, 278, -125, 55), (50, 280, -354, 17), (205, 425, -291, 80), (187, 411, -383, 118),
    (117, 346, -380, -102), (18, 18, 0, 415), (200, 200, 0, 467), (199, 199, 0, 524), (175, 175, 0, 572),
    (201, 421, -74, 460), (151, 151, 0, -492), (9, 9, 0, -387), (8, 8, 0, -321), (207, 427, -325, 154),
    (123, 352, -447, -5), (468, 473, -229, -228),
)  # fmt: skip
_PAIRED = [row for row in _TABLE if row[0] != row[1]]
LANDMARKS = np.array([row[0] for row in _TABLE] + [row[1] for row in _PAIRED])
"""Numbers of the chosen landmarks in MediaPipe's mesh, [K], K = 165."""
# Position in LANDMARKS of each number in the mesh.
_POSITION = {int(number): position for position, number in enumerate(LANDMARKS)}
_MIRROR = {a: b for left, right, _, _ in _TABLE for a, b in ((left, right), (right, left))}
MIRRORED = np.array([_POSITION[_MIRROR[int(number)]] for number in LANDMARKS])
"""Position in LANDMARKS of each landmark's mirror image, [K]."""
MEAN_LANDMARKS = (
    np.array([row[2:] for row in _TABLE] + [(-x, y) for _, _, x, y in _PAIRED], dtype=np.float32) / 1000
)
"""Mean places (x, y) of the chosen landmarks in a face crop, [K, 2], from the crop's centre, in units of half the
crop's side: the crop's edges are at -1 and 1."""
_INNER_RING = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
_OUTER_RING = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
INNER_LIPS, OUTER_LIPS = (
    np.array([_POSITION[number] for number in ring]) for ring in (_INNER_RING, _OUTER_RING)
)
"""Positions in LANDMARKS of the inner and outer edge of the lips, [20] each. They go around the mouth from the corner
on the picture's left, first along the lower lip. The entries n and 20 - n lie opposite each other on the two lips."""
MOUTH_CORNERS = np.array([_POSITION[61], _POSITION[291]])
"""Positions in LANDMARKS of the corners of the mouth, the picture's left one first, [2]."""
_EYE_RINGS = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
LIDS = np.array([[_POSITION[number] for number in ring] for ring in _EYE_RINGS])
"""Positions in LANDMARKS of the lids' edges, the picture's left eye first, [2, 16]. They go around each eye from its
outer corner, first along the lower lid. The entries n and 16 - n lie opposite each other on the two lids."""
EYES = np.array([[_POSITION[33], _POSITION[133]], [_POSITION[362], _POSITION[263]]])
"""Positions in LANDMARKS of the corners of both eyes, [2, 2]: the picture's left eye first, and of each eye the corner
on the picture's left first."""

LANDMARK_FRAMES = 8
"""Number of frames of a clip whose landmarks are kept for training."""


def find_landmarks(picture: np.ndarray) -> np.ndarray:
    """Return the landmarks of the face in a face crop uint8 [S, S, 3]: float32 [K, 2], in units of half its side.

    If no face is found, log a warning and return MEAN_LANDMARKS.
    """
    faces = _landmarker().detect(picture)
    if not faces:
        _log.warning("no face is found in the face crop: an average face's landmarks are used")
        return MEAN_LANDMARKS.copy()
    return crop_landmarks(faces[0], CropBox(left=0, top=0, side=len(picture)))


def crop_landmarks(face: Face, box: CropBox) -> np.ndarray:
    """Return the chosen landmarks of a face, from the centre of a crop, in units of half its side: float32 [K, 2].

    Args:
        face: The face, found in a picture.
        box: The crop, a square of the same picture.
    """
    corner = np.array([box.left, box.top], dtype=np.float32)
    return (face.points[LANDMARKS, :2] - corner) * np.float32(2 / box.side) - 1


def landmark_track(faces: Sequence[Face | None], box: CropBox) -> np.ndarray:
    """Return the landmarks of the faces of T successive frames in a crop, float32 [T, K, 2]; see `crop_landmarks`.

    A frame without a face gets the landmarks of the nearest frame with one.

    Raises:
        ValueError: There is no face.
    """
    found = np.array([number for number, face in enumerate(faces) if face is not None])
    if not len(found):
        raise ValueError("no face in any frame")
    nearest = np.abs(found - np.arange(len(faces))[:, None]).argmin(axis=1)
    return np.stack([crop_landmarks(cast(Face, faces[number]), box) for number in found])[nearest]


def landmark_frames(frames: int) -> np.ndarray:
    """Return the numbers of the frames whose landmarks are kept, int64 [LANDMARK_FRAMES], evenly spaced.

    Args:
        frames: Number of frames of the clip.
    """
    return np.linspace(0, frames - 1, LANDMARK_FRAMES).round().astype(np.int64)


@cache
def _landmarker() -> FaceLandmarker:
    return FaceLandmarker(max_faces=1)
