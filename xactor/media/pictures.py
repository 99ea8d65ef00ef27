"""Convert decoded frames to pictures as players show them."""

from fractions import Fraction
from typing import Any

import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from xactor.media.hdr import is_hdr, tone_map

# Maximum ratio between the two sides of a pixel. A file with a larger ratio is taken to be wrong, and its pixels to be
# square.
_MAX_STRETCH = 4
# FFmpeg's value of `colorspace` for a frame without the tag that names the matrix of its colours.
_UNTAGGED = 2


class PictureConverter:
    """Convert decoded frames to pictures as players show them, uint8 [H, W, 3] RGB: upright, with square pixels.

    Of an interlaced frame, the upper field is enlarged. HDR becomes SDR, see `xactor.media.hdr`.

    Use one converter for all frames of a video, because creating one takes 2 ms.

    Args:
        stream: The frames' stream.
        max_px: Maximum of the longer side. Larger pictures are reduced to it during the conversion, which is cheap.

    Attributes:
        stretch: Width of a pixel divided by its height.
    """

    def __init__(self, stream: VideoStream, max_px: int | None = None):
        self._converter, self._max_px = VideoReformatter(), max_px
        stretch = Fraction(stream.sample_aspect_ratio or 1)
        self.stretch = stretch if 1 / _MAX_STRETCH <= stretch <= _MAX_STRETCH else Fraction(1)
        # The filter that takes fields out of interlaced frames, and the layout of the frames that it takes.
        self._fields: tuple[tuple[int, int, str], av.filter.Graph] | None = None

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        width, height = round(frame.width * self.stretch), frame.height
        if self._max_px and max(width, height) > self._max_px:
            shrink = self._max_px / max(width, height)
            width, height = max(round(width * shrink), 1), max(round(height * shrink), 1)
        transfer, options = frame.color_trc, dict[str, Any]()
        # For a frame without the tag, FFmpeg assumes BT.601 at every size, but players assume BT.709 for large frames.
        if frame.colorspace == _UNTAGGED and is_hdr(transfer):
            options["src_colorspace"] = Colorspace.BT2020
        elif frame.colorspace == _UNTAGGED and (frame.width >= 1280 or frame.height > 576):
            options["src_colorspace"] = Colorspace.ITU709
        turns = round(frame.rotation / 90) % 4
        if frame.interlaced_frame:
            frame = self._first_field(frame)
        if (width, height) != (frame.width, frame.height):
            enlarged = height > frame.height
            interpolation = Interpolation.BICUBIC if enlarged else Interpolation.AREA
            options |= {"width": width, "height": height, "interpolation": interpolation}
        if is_hdr(transfer):
            wide = self._converter.reformat(frame, format="rgb48le", **options).to_ndarray()
            rgb = tone_map(wide, transfer)
        else:
            rgb = self._converter.reformat(frame, format="rgb24", **options).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def _first_field(self, frame: VideoFrame) -> VideoFrame:
        """Return the upper field of an interlaced frame: every second row.

        The two fields show different moments, so a frame of both would show moving lips twice.
        """
        layout = frame.width, frame.height, frame.format.name
        if self._fields is None or self._fields[0] != layout:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            graph.link_nodes(source, graph.add("field", "type=top"), graph.add("buffersink")).configure()
            self._fields = layout, graph
        _, graph = self._fields
        graph.push(frame)
        field = graph.pull()
        assert isinstance(field, VideoFrame)
        return field
