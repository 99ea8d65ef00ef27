"""What a clip becomes in the shards of both stages; stage 1's mp4 is the square crop of a face, 25 fps, with sound."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xactor.media import write_video
from xactor.rates import FPS

_CRF = 10  # hardly to be told from the pictures themselves: an encoder and a renderer learn from these pixels
_KEYFRAME_EVERY = FPS  # training seeks to a few frames of a clip


@dataclass(frozen=True, kw_only=True)
class ClipSamples:
    """One clip's members by extension, for stage 2's shards and for stage 1's, where crops are made."""

    motion: dict[str, Any]
    video: dict[str, Any] | None


def face_video(crops: Iterable[np.ndarray], samples: np.ndarray) -> bytes:
    """Crops uint8 [S, S, 3] at 25 fps and sound float32 [N] at 16 kHz to an mp4."""
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
