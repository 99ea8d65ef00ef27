"""Read the decoded frames of a video with their times, and write frames back as they came.

Frames keep their size, pixel format, colour tags, rotation and time stamps. A frame that nobody changes reaches the
encoder as the decoder made it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter

from xactor.atomic_path import atomic_path
from xactor.media.container import decode, open_container, origin_s, video_stream
from xactor.media.hdr import is_hdr
from xactor.media.pictures import PictureConverter
from xactor.media.sound import Sound
from xactor.media.writer import Speech
from xactor.rates import FPS

# Pixel formats that are kept. Their planes hold 8 bits, or 10 bits in the lower bits of 16. Frames of other formats are
# converted to the first one.
_KEPT_FORMATS = (
    "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv420p10le", "yuv422p10le", "yuv444p10le",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Footage:
    """Hold the facts of a video whose frames are to be written again."""

    source: Path
    """The file."""
    width: int
    """Width of the decoded frames in pixels, before rotation."""
    height: int
    """Height of the decoded frames in pixels, before rotation."""
    pixel_format: str
    """Pixel format of the frames that `frames` yields, by FFmpeg's name."""
    original_format: str
    """Pixel format of the decoded frames."""
    pixel_aspect: Fraction
    """Width of a pixel divided by its height, as the file states it."""
    rotation: int
    """Angle in degrees by which players turn the frames."""
    time_base: Fraction
    """Unit of time stamps in seconds."""
    usual_ticks: int
    """Duration of a frame for which the file gives none, in units of `time_base`."""
    colours: tuple[int, int, int, int]
    """Tags of the frames' colours: matrix, range, primaries and transfer function."""

    @classmethod
    def of(cls, source: str | Path) -> "Footage":
        """Return the facts of a video.

        Raises:
            ValueError: The file cannot be decoded, has no pictures, is HDR or interlaced, or has frames of a size that
                h264 cannot hold. The message names the file.
        """
        with open_container(source) as container:
            stream = video_stream(container, source)
            frame = next(decode(container, stream, source), None)
            if not isinstance(frame, VideoFrame):
                raise ValueError(f"{source}: the video track is empty")
            if is_hdr(frame.color_trc):
                raise ValueError(f"{source}: HDR footage cannot be dubbed yet; convert it to SDR first")
            assert stream.time_base is not None
            name = frame.format.name
            footage = cls(
                source=Path(source),
                width=frame.width,
                height=frame.height,
                pixel_format=name if name in _KEPT_FORMATS else _KEPT_FORMATS[0],
                original_format=name,
                pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
                rotation=round(frame.rotation),
                time_base=stream.time_base,
                usual_ticks=max(round(1 / ((stream.average_rate or FPS) * stream.time_base)), 1),
                colours=(frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc),
            )
        step_x, step_y = footage.chroma_step
        if footage.width % step_x or footage.height % step_y:
            raise ValueError(
                f"{source}: frames of {footage.width}x{footage.height} cannot be written as {footage.pixel_format}, "
                f"whose sides must be multiples of {step_x}x{step_y}"
            )
        return footage

    @property
    def chroma_step(self) -> tuple[int, int]:
        """Return the columns and rows of pixels that share one sample of colour."""
        return 1 if "444" in self.pixel_format else 2, 2 if "420" in self.pixel_format else 1

    @property
    def bits(self) -> int:
        """Return the bits of a sample."""
        return 10 if self.pixel_format.endswith("10le") else 8

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the decoded frames. `pts` counts from the time at which a player starts, and always rises.

        Raises:
            ValueError: The file is damaged, or a frame is interlaced or of another size than the first.
        """
        reformatter, last = VideoReformatter(), -1
        with open_container(self.source) as container:
            stream = video_stream(container, self.source)
            stream.thread_type, stream.thread_count = "AUTO", 1
            start = round(Fraction(origin_s(container)) / self.time_base)
            end = 0
            for number, frame in enumerate(decode(container, stream, self.source)):
                assert isinstance(frame, VideoFrame)
                if (frame.width, frame.height) != (self.width, self.height):
                    raise ValueError(
                        f"{self.source}: frame {number} is {frame.width}x{frame.height}, "
                        f"the first was {self.width}x{self.height}"
                    )
                if frame.interlaced_frame:
                    raise ValueError(
                        f"{self.source}: frame {number} is interlaced; deinterlace the video before it is dubbed"
                    )
                pts = end if frame.pts is None else frame.pts - start
                duration = frame.duration or self.usual_ticks
                if frame.format.name != self.pixel_format:
                    frame = reformatter.reformat(frame, format=self.pixel_format)
                # Frames before the start are not shown, and a stamp that does not rise cannot be written.
                frame.pts = last = max(pts, last + 1)
                frame.time_base, frame.duration = self.time_base, duration
                # Otherwise the encoder would repeat the source's choice of keyframes and B-frames.
                frame.pict_type = PictureType.NONE
                end = last + duration
                yield frame

    def converter(self, max_px: int | None = None) -> PictureConverter:
        """Return a converter of the frames to upright pictures with square pixels; see `PictureConverter`."""
        with open_container(self.source) as container:
            return PictureConverter(video_stream(container, self.source), max_px)


def copied(frame: VideoFrame) -> VideoFrame:
    """Return a copy of a frame, whose planes may be written. A decoder may still need its own frame."""
    copy = VideoFrame(frame.width, frame.height, frame.format.name)
    for target, source in zip(planes(copy), planes(frame), strict=True):
        target[:] = source
    copy.pts, copy.time_base, copy.duration = frame.pts, frame.time_base, frame.duration
    return copy


def planes(frame: VideoFrame) -> list[np.ndarray]:
    """Return views of a planar frame's planes, uint8 or uint16 [h, w] each."""
    kind = np.dtype(np.uint16 if frame.format.name.endswith("10le") else np.uint8)
    views = []
    for plane in frame.planes:
        samples = np.frombuffer(memoryview(plane), kind)  # pyright: ignore
        views.append(samples.reshape(-1, plane.line_size // kind.itemsize)[: plane.height, : plane.width])
    return views


def write_footage(
    path: str | Path,
    footage: Footage,
    frames: Iterable[VideoFrame],
    *,
    sound: Sound,
    crf: int = 18,
    preset: str = "veryfast",
    metadata: dict[str, str] | None = None,
) -> int:
    """Write frames and sound to an h264 + aac mp4 with the size, tags and times of the footage. Return their number.

    The file is written atomically, and by one thread, so that equal input gives equal bytes.

    Args:
        path: The file to write.
        footage: The video from which the frames come.
        frames: Frames in its pixel format, with time stamps in its time base.
        sound: The sound of a file.
        crf: Quality of x264: 0 is lossless, larger is worse.
        preset: Preset of x264.
        metadata: Tags of the mp4.

    Raises:
        ValueError: There are no frames.
    """
    # With crf 0, x264 is lossless for 8 bits only; with qp 0 it always is.
    quality = {"qp": "0"} if crf == 0 else {"crf": str(crf)}
    count = 0
    with (
        atomic_path(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update(metadata or {})
        rate = Fraction(1) / (footage.usual_ticks * footage.time_base)
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = footage.width, footage.height, footage.pixel_format
        # See `write_video` on mbtree.
        stream.options = {**quality, "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
        codec = stream.codec_context
        codec.time_base, codec.sample_aspect_ratio = footage.time_base, footage.pixel_aspect
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = footage.colours
        if footage.rotation:
            stream.set_display_rotation(footage.rotation)
        speech = Speech(container, sound, 0, fast=False)
        for frame in frames:
            assert frame.pts is not None
            container.mux(stream.encode(frame))
            # Write sound and pictures of the same time next to each other, so that a player need not seek.
            speech.write(until=frame.pts * footage.time_base)
            count += 1
        if not count:
            raise ValueError("a video needs at least one frame, got none")
        speech.close()
        container.mux(stream.encode(None))
    return count
