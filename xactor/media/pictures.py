"""Convert decoded frames to pictures as players show them."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

# Maximum ratio between the two sides of a pixel. A file with a larger ratio is taken to be wrong, and its pixels to be
# square.
_MAX_STRETCH = 4
# FFmpeg's value of `colorspace` for a frame without the tag that names the matrix of its colours.
_UNTAGGED = 2


class PictureConverter:
    """Convert decoded frames to pictures as players show them, uint8 [H, W, 3] RGB: upright, with square pixels.

    Use one converter for all frames of a video, because creating one takes 2 ms.

    Args:
        stream: The frames' stream.
        max_px: Maximum of the longer side. Larger pictures are reduced to it during the conversion, which is cheap.
    """

    def __init__(self, stream: VideoStream, max_px: int | None = None):
        self._converter, self._max_px = VideoReformatter(), max_px
        stretch = Fraction(stream.sample_aspect_ratio or 1)
        self._stretch = stretch if 1 / _MAX_STRETCH <= stretch <= _MAX_STRETCH else Fraction(1)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        width, height = round(frame.width * self._stretch), frame.height
        if self._max_px and max(width, height) > self._max_px:
            shrink = self._max_px / max(width, height)
            width, height = max(round(width * shrink), 1), max(round(height * shrink), 1)
        options: dict[str, Any] = {}
        if (width, height) != (frame.width, frame.height):
            options = {"width": width, "height": height, "interpolation": Interpolation.AREA}
        # For a frame without the tag, FFmpeg assumes BT.601 at every size, but players assume BT.709 for large frames.
        large = frame.width >= 1280 or frame.height > 576
        if frame.colorspace == _UNTAGGED and large:
            options["src_colorspace"] = Colorspace.ITU709
        rgb = self._converter.reformat(frame, format="rgb24", **options).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
