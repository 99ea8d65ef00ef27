"""Read a video, or a span of it without decoding everything before, at a constant rate, as a player shows it."""

from collections.abc import Iterator

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from xactor.media.clock import usual_s
from xactor.media.container import Source, decode, length_s, open_container, origin_s, video_stream
from xactor.media.pictures import PictureConverter
from xactor.media.seek import decode_from
from xactor.rates import FPS


def read_frames(source: Source, fps: float = FPS) -> Iterator[np.ndarray]:
    """Yield all pictures of a video at a constant rate, uint8 [H, W, 3] RGB. See `read_span`.

    The number of frames is round(duration x fps), at least 1.

    Raises:
        ValueError: The file cannot be decoded or has no pictures; the message names it.
    """
    pictures = read_span(source, fps=fps)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"{source}: the video track is empty")
    yield first
    yield from pictures


def read_span(
    source: Source, first: int = 0, end: int | None = None, *, fps: float = FPS, max_px: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames from `first` up to `end`, fewer if the video ends earlier: uint8 [H, W, 3] RGB.

    Frame n is the picture that a player shows in the middle of the frame's time, at (n + 1/2) / fps. So pictures and
    sound are at most half a frame apart. The source may have any rate, even a variable one. Pictures are upright with
    square pixels.

    Args:
        source: A path, or an open file that can seek.
        first: Number of the first frame.
        end: Number after the last frame; None means the end of the video.
        fps: Rate at which frames are numbered.
        max_px: Maximum of the longer side. Larger pictures are reduced to it while they are decoded, which is cheap.

    Raises:
        ValueError: The file cannot be decoded, or has no pictures.
    """
    with open_container(source) as container:
        stream = video_stream(container, source)
        stream.thread_type, stream.thread_count = "AUTO", 1
        start_s = origin_s(container)
        converter = PictureConverter(stream, max_px)
        try:
            if first:
                # Start one frame early: the picture to show may begin before the frame's own time.
                frames = decode_from(container, stream, start_s + (first - 1) / fps, source)
            else:
                frames = decode(container, stream, source)
            yield from _at_constant_rate(frames, converter, start_s, usual_s(stream, fps), first, end, fps)
        except FFmpegError as error:
            raise ValueError(f"{source}: corrupt ({error.strerror})") from error


def _at_constant_rate(
    frames: Iterator,
    converter: PictureConverter,
    start_s: float,
    usual_s: float,
    n: int,
    end: int | None,
    fps: float,
) -> Iterator[np.ndarray]:
    """Yield the pictures of the frames from `n` up to `end`. Each decoded frame is converted at most once."""
    # The decoded frame that is on the screen until the next one begins.
    current: VideoFrame | None = None
    # The picture of the current frame, or None before its conversion.
    shown: np.ndarray | None = None
    until_s = 0.0
    for frame in frames:
        now_s = frame.time - start_s
        while current is not None and (end is None or n < end) and (n + 0.5) / fps < now_s:
            shown = converter(current) if shown is None else shown
            yield shown
            n += 1
        if end is not None and n >= end:
            return
        current, shown = frame, None
        until_s = now_s + (length_s(frame) or usual_s)
    # Even the shortest video has a frame.
    while current is not None and (end is None or n < end) and (n == 0 or (n + 0.5) / fps < until_s):
        shown = converter(current) if shown is None else shown
        yield shown
        n += 1
