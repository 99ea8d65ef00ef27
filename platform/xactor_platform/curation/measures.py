"""Measure what the gates judge: blur, covers of the face, and speech in the sound. All are cheap, none is learned."""

import cv2
import numpy as np

_BLUR_TAPS = 9
# Side of a face's thumbnail, in pixels.
_THUMB = 32
# Places of the eyes' outer corners and of the nose's base in a thumbnail, and its skin that moves little: forehead and
# nose, the cheeks, and around the mouth.
_PLACES = np.array([(7, 10), (25, 10), (16, 19)], np.float32)
_SKIN = np.zeros((_THUMB, _THUMB), bool)
_SKIN[2:7, 8:24] = _SKIN[11:19, 5:27] = _SKIN[19:27, 8:24] = True
_REGIONS = (slice(2, 7), slice(11, 19), slice(19, 27))
# Smallest difference of covered skin, in standard deviations of the face, and smallest covered fraction of a region.
_DEPARTS, _COVERED = 0.7, 0.4
_FLOOR_DB = -70.0


def blur(face: np.ndarray) -> float:
    """Return the fraction of detail that is missing, 0 (sharp) to 1, by how little the picture changes when blurred.

    Args:
        face: uint8 [S, S, 3].

    After Crete et al. 2007, The blur effect: perception and estimation with a new no-reference perceptual blur metric.
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    found = []
    for axis, taps in ((0, (1, _BLUR_TAPS)), (1, (_BLUR_TAPS, 1))):
        sharp = np.abs(np.diff(grey, axis=axis))
        soft = np.abs(np.diff(cv2.blur(grey, taps), axis=axis))
        lost = np.maximum(sharp - soft, 0).sum()
        found.append(1 - lost / max(float(sharp.sum()), 1e-6))
    return float(max(found))


def face_thumbnail(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a face aligned by three points, float32 [32, 32], with mean 0 and deviation 1.

    Args:
        picture: uint8 [H, W, 3].
        points: outer corners of the eyes and base of the nose in it, float32 [3, 2].
    """
    lay = cv2.getAffineTransform(points.astype(np.float32), _PLACES)
    laid = cv2.warpAffine(
        picture, lay, (_THUMB, _THUMB), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    grey = cv2.GaussianBlur(cv2.cvtColor(laid, cv2.COLOR_RGB2GRAY), (0, 0), 1).astype(np.float32)
    return (grey - grey.mean()) / max(float(grey.std()), 4.0)


def occluded(thumbnails: np.ndarray) -> float:
    """Return the fraction of frames in which a region of the skin differs from its median over the clip.

    Args:
        thumbnails: of the clip's faces, float32 [N, 32, 32].
    """
    apart = np.abs(thumbnails - np.median(thumbnails, axis=0)) > _DEPARTS  # [N, 32, 32]
    covered = [apart[:, rows][:, _SKIN[rows]].mean(axis=1) for rows in _REGIONS]
    return float((np.max(covered, axis=0) > _COVERED).mean())


def speech_db(samples: np.ndarray, samples_per_frame: int) -> float:
    """Return the range of the sound's level: from the 10th to the 90th percentile over frames, in dB.

    Args:
        samples: float32 [N].
        samples_per_frame: length of a frame.
    """
    frames = samples[: len(samples) // samples_per_frame * samples_per_frame].reshape(-1, samples_per_frame)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    level = np.maximum(level, level.max() + _FLOOR_DB)
    return float(np.percentile(level, 90) - np.percentile(level, 10))
