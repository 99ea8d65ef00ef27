"""Write small videos for tests of footage, and read their planes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from xactor.media.footage import Footage, planes

NTSC = [Fraction(n * 1001, 30_000) for n in range(28)]


def frame_planes(path: Path) -> list[list[np.ndarray]]:
    """Return copies of the planes of a video's decoded frames."""
    return [[plane.copy() for plane in planes(frame)] for frame in Footage.of(path).frames()]


def times(path: Path) -> list[float]:
    return [frame.time for frame in Footage.of(path).frames()]  # pyright: ignore


def noise_video(
    path: Path, *, pixel_format: str = "yuv420p", seconds: list[Fraction], size=(64, 48), **tags
) -> Path:
    """Write random planes, lossless, shown at the given times."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.options = {"qp": "0", "preset": "ultrafast"}
        codec = stream.codec_context
        codec.time_base = Fraction(1, 90_000)
        for name, value in tags.items():
            if name == "rotation":
                stream.set_display_rotation(value)
            else:
                setattr(codec, name, value)
        for time in seconds:
            frame = VideoFrame(size[0], size[1], pixel_format)
            for plane in planes(frame):
                high = 900 if plane.dtype == np.uint16 else 220
                plane[:] = rng.integers(30, high, plane.shape)
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
