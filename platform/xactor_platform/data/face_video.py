"""Encode the square crops of a face, with sound, as a video for the shards of stage 1, the training of the renderer."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xactor.media import write_video
from xactor.rates import FPS

# Constant rate factor of the h264 encoder. 10 is nearly lossless, because the motion encoder and the renderer learn
# from these pixels.
_CRF = 10
# Frames from one keyframe to the next: one second, because training seeks to a few frames of a clip.
_KEYFRAME_EVERY = FPS


@dataclass(frozen=True, kw_only=True)
class ClipSamples:
    """Hold the files of one clip for the shards of both trainings. Keys are file extensions, such as `motion.npy`."""

    motion: dict[str, Any]
    """Files for the shards of stage 2, the training of the motion model."""
    video: dict[str, Any] | None
    """Files for the shards of stage 1, the training of the renderer. None if no face crops are made."""


def face_video(crops: Iterable[np.ndarray], samples: np.ndarray) -> bytes:
    """Encode crops uint8 [S, S, 3] at 25 fps and sound float32 [N] at 16 kHz. Return the bytes of an mp4."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "face.mp4"
        write_video(
            file,
            crops,
            fps=FPS,
            samples=samples,
            crf=_CRF,
            preset="ultrafast",
            keyframe_every=_KEYFRAME_EVERY,
        )
        return file.read_bytes()
