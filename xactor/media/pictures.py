"""Read the pictures of a video at a constant rate."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from xactor.media.container import decode, length_s, open_container, origin_s, video_stream
from xactor.rates import FPS


def read_frames(source: str | Path, fps: float = FPS) -> Iterator[np.ndarray]:
    """Yield the pictures of a video at a constant rate, uint8 [H, W, 3] RGB.

    Frame n is the picture nearest in time to n / fps. The source may have any rate, also a variable one. The number of
    frames is round(duration x fps). Pictures are turned upright if the file gives a rotation.

    Raises:
        ValueError: The file cannot be decoded or has no pictures; the message names it.
    """
    with open_container(source) as container:
        stream = video_stream(container, source)
        stream.thread_type = "AUTO"
        stream.thread_count = 1
        start_s = origin_s(container)
        usual_s = float(1 / stream.average_rate) if stream.average_rate else 1 / fps
        n = 0
        previous: VideoFrame | None = None
        previous_s = end_s = 0.0
        picture: np.ndarray | None = None
        converter = VideoReformatter()
        for frame in decode(container, stream, source):
            assert isinstance(frame, VideoFrame)
            now_s = end_s if frame.time is None else frame.time - start_s
            # Up to the middle between the two frames, the previous one is nearer.
            while previous is not None and n / fps < (previous_s + now_s) / 2:
                picture = upright(previous, converter) if picture is None else picture
                yield picture
                n += 1
            previous, previous_s, picture = frame, now_s, None
            end_s = now_s + (length_s(frame) or usual_s)
        if previous is None:
            raise ValueError(f"{source}: the video track is empty")
        picture = upright(previous, converter)
        while n < max(round(end_s * fps), 1):
            yield picture
            n += 1


def upright(frame: VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """Return a decoded picture upright, uint8 [H, W, 3]. Use one converter per video: creating one takes 2 ms."""
    return turned(converter.reformat(frame, format="rgb24").to_ndarray(), frame.rotation)


def turned(picture: np.ndarray, rotation: float) -> np.ndarray:
    """Turn a picture counter-clockwise by an angle in degrees, rounded to a quarter turn."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
