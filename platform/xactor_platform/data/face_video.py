"""Encode the square crops of a face, with sound, as a video for stage 1's shards."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xactor.media import write_video
from xactor.rates import FPS

# Nearly lossless: the motion encoder and the renderer learn from these pixels.
_CRF = 10
# A keyframe every second, because training seeks to a few frames of a clip.
_KEYFRAME_EVERY = FPS


@dataclass(frozen=True, kw_only=True)
class ClipSamples:
    """Hold one clip's members by extension, for the shards of both stages."""

    motion: dict[str, Any]
    """Members for stage 2's shards."""
    video: dict[str, Any] | None
    """Members for stage 1's shards. None if no face crops are made."""


def face_video(crops: Iterable[np.ndarray], samples: np.ndarray) -> bytes:
    """Encode crops uint8 [S, S, 3] at 25 fps and sound float32 [N] at 16 kHz as an mp4."""
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
