"""Measure a clip's quality: blur, things that cover the face, and speech in the sound.

The gates of curation drop clips by these measures. The measures are cheap and need no model.
"""

import cv2
import numpy as np

# Length of the box filter that blurs a picture, in pixels.
_BLUR_TAPS = 9
# Side of a face's thumbnail, in pixels.
_THUMB = 32
# Places of the eyes' outer corners and of the base of the nose in a thumbnail: x, y.
_PLACES = np.array([(7, 10), (25, 10), (16, 19)], np.float32)
# Pixels of a thumbnail with skin that moves little: the forehead, the cheeks with the nose, and around the mouth.
_SKIN = np.zeros((_THUMB, _THUMB), bool)
_SKIN[2:7, 8:24] = _SKIN[11:19, 5:27] = _SKIN[19:27, 8:24] = True
# Rows of these three regions.
_REGIONS = (slice(2, 7), slice(11, 19), slice(19, 27))
# A pixel counts as covered if its color or its brightness differs from the median over the clip by more than this. The
# units are levels of 255 in the plane of Cr and Cb, and the standard deviation of the brightness of a thumbnail.
_MIN_COLOR_DIFFERENCE, _MIN_DIFFERENCE = 8.0, 1.2
# A region counts as covered if more than this fraction of its pixels is covered.
_MIN_COVERED = 0.4
# Smallest level of a frame relative to the loudest frame. Quieter frames count as this loud.
_FLOOR_DB = -70.0


def blur(face: np.ndarray) -> float:
    """Return the fraction of detail that is missing, 0 (sharp) to 1.

    The measure blurs the picture once more: the smaller the change, the more blurred the picture was.

    Args:
        face: uint8 [S, S, 3].

    After Crete et al. 2007, The blur effect: perception and estimation with a new no-reference perceptual blur metric.
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blur_of_axis = []
    for axis, taps in ((0, (1, _BLUR_TAPS)), (1, (_BLUR_TAPS, 1))):
        sharp = np.abs(np.diff(grey, axis=axis))
        soft = np.abs(np.diff(cv2.blur(grey, taps), axis=axis))
        lost = np.maximum(sharp - soft, 0).sum()
        blur_of_axis.append(1 - lost / max(float(sharp.sum()), 1e-6))
    return float(max(blur_of_axis))


def face_thumbnail(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a thumbnail of a face, aligned by three points, float32 [32, 32, 3].

    The channels are brightness, with mean 0 and standard deviation 1, and the colors Cr and Cb relative to the skin's
    median color, so that colored light on the whole face changes nothing.

    Args:
        picture: uint8 [H, W, 3].
        points: outer corners of the eyes and base of the nose in the picture, float32 [3, 2].
    """
    transform = cv2.getAffineTransform(points.astype(np.float32), _PLACES)
    aligned = cv2.warpAffine(
        picture, transform, (_THUMB, _THUMB), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    thumbnail = cv2.GaussianBlur(cv2.cvtColor(aligned, cv2.COLOR_RGB2YCrCb), (0, 0), 1).astype(np.float32)
    grey, color = thumbnail[..., 0], thumbnail[..., 1:]
    # The bound, in levels of 255, keeps the noise of a nearly uniform picture small.
    thumbnail[..., 0] = (grey - grey.mean()) / max(float(grey.std()), 4.0)
    thumbnail[..., 1:] = color - np.median(color[_SKIN], axis=0)
    return thumbnail


def occluded(thumbnails: np.ndarray) -> float:
    """Return the fraction of frames in which something covers a region of the face.

    A cover is recognised by pixels whose color or brightness differs from the median over the clip. Smiles and turns of
    the head change the brightness of skin less, and its color hardly.

    Args:
        thumbnails: thumbnails of the clip's faces, float32 [N, 32, 32, 3].
    """
    difference = thumbnails - np.median(thumbnails, axis=0)
    differs = np.linalg.norm(difference[..., 1:], axis=-1) > _MIN_COLOR_DIFFERENCE  # [N, 32, 32]
    differs |= np.abs(difference[..., 0]) > _MIN_DIFFERENCE
    covered = [differs[:, rows][:, _SKIN[rows]].mean(axis=1) for rows in _REGIONS]  # 3 x [N]
    return float((np.max(covered, axis=0) > _MIN_COVERED).mean())


def speech_db(samples: np.ndarray, samples_per_frame: int) -> float:
    """Return the range of the sound's level: from the 10th to the 90th percentile over frames, in dB.

    Args:
        samples: float32 [N].
        samples_per_frame: samples in a frame.
    """
    frames = samples[: len(samples) // samples_per_frame * samples_per_frame].reshape(-1, samples_per_frame)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    level = np.maximum(level, level.max() + _FLOOR_DB)
    return float(np.percentile(level, 90) - np.percentile(level, 10))
