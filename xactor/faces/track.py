"""Convert the faces of a video's frames to a control track: 57 numbers per frame for expression and head pose."""

from collections.abc import Sequence

import numpy as np

from xactor.controls import CONTROL_COUNT, INDEX
from xactor.faces.landmarker import Face

# Width of MediaPipe's canonical face, the unit of headX and headY.
_FACE_WIDTH_CM = 14.0


def control_track(faces: Sequence[Face | None], *, max_gap_frames: int = 5) -> np.ndarray:
    """Convert the faces of T successive frames to controls, float32 [T, 57]: `xactor.controls` defines the columns.

    The head's position and size are relative to the clip's median.

    Args:
        faces: Face of each frame, or None if the frame shows none.
        max_gap_frames: Maximum number of successive frames without a face. Their controls are interpolated linearly.
            At the clip's ends they equal those of the nearest frame with a face.

    Raises:
        ValueError: There are no frames or no faces, or a gap is longer; the message gives the frames' numbers.
    """
    if not faces:
        raise ValueError("no frames")
    found = np.array([face is not None for face in faces])
    if not found.any():
        raise ValueError("no face in any frame")
    with_face = np.flatnonzero(found)
    # Between two successive entries of `bounds` lies a gap, or nothing. The entries -1 and T stand for the clip's ends.
    bounds = np.concatenate([[-1], with_face, [len(faces)]])
    longest = int(np.diff(bounds).argmax())
    gap = int(bounds[longest + 1] - bounds[longest] - 1)
    if gap > max_gap_frames:
        raise ValueError(
            f"no face in frames {bounds[longest] + 1} to {bounds[longest + 1] - 1} of {len(faces)}; "
            f"at most {max_gap_frames} in a row are interpolated"
        )
    rows = np.stack([_row(face) for face in faces if face is not None])  # [found, 57]
    for name in ("headX", "headY", "headLogScale"):
        rows[:, INDEX[name]] -= np.median(rows[:, INDEX[name]])
    frames = np.arange(len(faces))
    track = np.stack([np.interp(frames, with_face, column) for column in rows.T], axis=1)  # [T, 57]
    return track.astype(np.float32)


def _row(face: Face) -> np.ndarray:
    """Return one face's controls, float64 [57]. Position and size are not yet relative to the clip's median."""
    rotation, position = face.matrix[:3, :3].astype(np.float64), face.matrix[:3, 3].astype(np.float64)
    # The matrix may also scale the face. Remove the scale, so that the columns are unit vectors.
    rotation /= np.linalg.norm(rotation, axis=0)
    forward, up = rotation[:, 2], rotation[:, 1]
    row = np.zeros(CONTROL_COUNT)
    row[: len(face.blendshapes)] = face.blendshapes
    row[INDEX["headPitch"]] = -np.arcsin(np.clip(forward[1], -1, 1))
    row[INDEX["headYaw"]] = np.arctan2(forward[0], forward[2])
    row[INDEX["headRoll"]] = np.arctan2(up[0], up[1])
    row[INDEX["headX"]] = position[0] / _FACE_WIDTH_CM
    row[INDEX["headY"]] = -position[1] / _FACE_WIDTH_CM
    # A face's size in the picture falls with its distance from the camera, in cm. The bound avoids the logarithm of 0.
    row[INDEX["headLogScale"]] = -np.log(max(abs(position[2]), 1e-3))
    return row
