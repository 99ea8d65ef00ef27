"""Check SyncNet on the example video of the reference implementation, github.com/joonson/syncnet_python.

The scores that are measured here are compared with those in the reference's README.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from PIL import Image

from xactor.media import read_audio, read_frames
from xactor.metrics.sync import sync
from xactor.metrics.syncnet import SyncNet
from xactor.rates import FPS


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Hold one number, as measured and as published."""

    name: str
    """Name of the number, with its unit if it has one."""
    measured: float
    """Value measured here."""
    published: float
    """Value in the reference's README."""
    tolerance: float
    """Maximum difference at which the measured and the published value agree."""

    @property
    def agrees(self) -> bool:
        return abs(self.measured - self.published) <= self.tolerance


def syncnet_figures(model: SyncNet, video: str | Path) -> list[Figure]:
    """Measure the three numbers that the reference's README gives for its `data/example.avi`.

    Ours: the tolerances. Our JPEG encoder and sound decoder differ from the reference's. This changes the distances a
    little, but never the offset.

    Args:
        model: The published SyncNet.
        video: The reference's `data/example.avi`.

    Raises:
        ValueError: The file is not a video of 224-px face crops with sound; the message names it.
    """
    frames = compressed_as_in_the_reference(read_frames(video, FPS))
    try:
        score = sync(model, frames, read_audio(video))
    except ValueError as error:
        raise ValueError(f"{video}: {str(error).removeprefix(f'{video}: ')}") from error
    return [
        Figure(name="AV offset, frames", measured=score.offset_frames, published=3, tolerance=0),
        Figure(name="min distance (SynD)", measured=score.distance, published=5.353, tolerance=0.25),
        Figure(name="confidence (SynC)", measured=score.confidence, published=10.021, tolerance=0.25),
    ]


def compressed_as_in_the_reference(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield frames uint8 [H, W, 3] after JPEG compression at the default bit rate of the reference's ffmpeg.

    The reference compressed the frames before it scored them, so the published figures include the losses of that bit
    rate, 200 kbit/s. After a few hundred frames the losses are visible in pictures of 224 px (32 dB).
    """
    encoder: VideoCodecContext | None = None
    for number, picture in enumerate(frames):
        if encoder is None:
            encoder = cast(VideoCodecContext, av.CodecContext.create("mjpeg", "w"))
            encoder.height, encoder.width = picture.shape[:2]
            encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1, FPS), 1
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="yuvj420p"
        )
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        (packet,) = encoder.encode(frame)
        yield np.asarray(Image.open(io.BytesIO(bytes(packet))).convert("RGB"))
