"""Define the result of the pipeline: a video whose frames are computed only when the caller reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from xactor.media import Sound, write_video
from xactor.provenance import ai_generated
from xactor.rates import FPS

OutputType = Literal["uint8", "pil", "np", "pt"]
"""Name of the type of frames: "uint8" for uint8 [H, W, 3], "pil" for PIL images, "np" for float32 [H, W, 3] in [0, 1],
"pt" for float32 tensors [3, H, W] in [0, 1]."""
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)


@dataclass(frozen=True, kw_only=True)
class Animation:
    """Hold a video whose frames are computed while they are read. The frames can be read only once."""

    frames: Iterator[Any]
    """Frames at 25 fps: uint8 [H, W, 3], or the `OutputType` that the caller chose."""
    frame_count: int
    """Number of frames."""
    sound: Sound | np.ndarray
    """The audio: a file with its own rate and channels, or samples float32 [N], mono, 16 kHz."""
    notes: tuple[str, ...] = ()
    """Remarks on the portrait for the user, such as that it holds several faces."""

    def save(self, path: str | Path) -> int:
        """Compute the frames and write them to an mp4 with the sound. Return the number of frames.

        The metadata of the mp4 says that the video is AI-generated.

        The file appears only when it is complete.
        """
        pixels = map(_as_pixels, self.frames)
        return write_video(path, pixels, fps=FPS, samples=self.sound, metadata=ai_generated())


def _as_pixels(frame: Any) -> np.ndarray:
    """Return a frame of any output type as uint8 [H, W, 3]."""
    if isinstance(frame, torch.Tensor):
        frame = frame.movedim(0, -1).numpy()
    frame = np.asarray(frame)
    return frame if frame.dtype == np.uint8 else np.rint(frame * 255).astype(np.uint8)


CONVERSIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "uint8": lambda frame: frame,
    "pil": Image.fromarray,
    "np": lambda frame: frame.astype(np.float32) / 255,
    "pt": lambda frame: torch.from_numpy(frame).movedim(-1, 0) / 255,
}
"""For each output type, the function that converts a frame uint8 [H, W, 3] to that type."""
