"""SyncNet's own check: the reference's example, scored here, beside what its README says of it."""

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
    """One figure, as measured and as published, and how far apart the two may be."""

    name: str
    measured: float
    published: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return abs(self.measured - self.published) <= self.tolerance


def syncnet_figures(model: SyncNet, video: str | Path) -> list[Figure]:
    """The three figures that the reference's README gives for its `data/example.avi`, measured on that file.

    Ours: the tolerances. A JPEG of another ffmpeg and another decoder of the sound move the distances a little, and
    the offset never.

    Raises:
        ValueError: naming the file: not a video of 224-px face crops with sound.
    """
    frames = as_the_reference_reads(read_frames(video, FPS))
    try:
        score = sync(model, frames, read_audio(video))
    except ValueError as error:
        raise ValueError(f"{video}: {str(error).removeprefix(f'{video}: ')}") from error
    return [
        Figure(name="AV offset, frames", measured=score.offset_frames, published=3, tolerance=0),
        Figure(name="min distance (SynD)", measured=score.distance, published=5.353, tolerance=0.25),
        Figure(name="confidence (SynC)", measured=score.confidence, published=10.021, tolerance=0.25),
    ]


def as_the_reference_reads(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] after the JPEGs that the reference has ffmpeg make of them, of its default bit rate.

    That is 200 kbit/s, of which the published figures are: a few hundred frames on, 224-px pictures show it (32 dB).
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
