"""Write pictures and sound to an mp4 atomically, and sound alone."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from xactor.atomic_path import atomic_path
from xactor.media.container import open_container, url_of
from xactor.media.sound import LiveSound, Sound, TooLong
from xactor.rates import FPS, SAMPLE_RATE_HZ

# Rates that AAC supports. Other rates are converted to 48 kHz.
_AAC_RATES_HZ = frozenset(
    (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
)
# The usual layouts of 1 to 6 channels, which AAC supports. A layout that AAC does not support is converted to the usual
# layout with the same number of channels, or to 5.1 if it has more than 6.
_AAC_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1")
# Other layouts that AAC supports.
_AAC_OTHER_LAYOUTS = ("3.0", "quad")
# Samples per channel in an AAC frame.
_BLOCK = 1024
# Number of frames by which the decoding times are ahead of the display times, with x264's default B-frames.
_REORDERED = 2


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int = FPS,
    samples: np.ndarray | Sound,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    crf: int = 18,
    preset: str = "veryfast",
    keyframe_every: int | None = None,
    metadata: dict[str, str] | None = None,
) -> int:
    """Write frames and sound to an h264 + aac mp4 and return the number of frames.

    The index is at the start of the file (faststart). The file is written atomically, and by one thread, so that equal
    input gives equal bytes. Neither the pictures nor a file's sound are held in memory.

    Args:
        path: The file to write.
        frames: uint8 [H, W, 3]; H and W must be even (yuv420p).
        fps: Frames per second.
        samples: Float32 [N] mono at `sample_rate_hz`, or the sound of a file, which keeps its rate and channels as far
            as AAC supports them. An empty array gives a video without an audio track.
        sample_rate_hz: Rate of an array of samples. The sound of a file has its own rate.
        crf: Quality of x264: 0 is lossless, larger is worse.
        preset: Preset of x264; "ultrafast" also encodes the sound faster.
        keyframe_every: Maximum number of frames from one keyframe to the next; None leaves it to x264.
        metadata: Tags of the mp4.

    Raises:
        ValueError: There are no frames, a frame is of another type or size, or the samples are not mono.
    """
    path = Path(path)
    if isinstance(samples, np.ndarray) and samples.ndim != 1:
        raise ValueError(f"samples must be mono [N], got shape {samples.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as partial,
        av.open(url_of(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update(metadata or {})
        # mbtree is off: it reads uninitialised memory if the width is not a multiple of 128 px, and then encodes the
        # same frames differently each time.
        options: dict[str, object] = {
            "crf": str(crf),
            "preset": preset,
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        if keyframe_every is not None:
            options["g"] = str(keyframe_every)
        pictures = Pictures(container, fps, options)
        speech = Speech(container, samples, sample_rate_hz, fast=preset == "ultrafast")
        for picture in frames:
            pictures.write(picture)
            # Write sound and pictures of the same time next to each other, so that a player need not seek.
            speech.write(until=Fraction(pictures.count, fps))
        if not pictures.count:
            raise ValueError("a video needs at least one frame, got none")
        speech.close()
        pictures.close()
    return pictures.count


def remux(source: str | Path, target: str | Path) -> None:
    """Convert a fragmented mp4 to a plain one with the index at its start, without encoding again.

    Of the tags, only the comment is kept.
    """
    with (
        av.open(url_of(source)) as fragmented,
        av.open(url_of(target), "w", format="mp4", options={"movflags": "+faststart"}) as plain,
    ):
        plain.metadata.update({"comment": fragmented.metadata.get("comment", "")})
        tracks = {stream.index: plain.add_stream_from_template(stream) for stream in fragmented.streams}  # pyright: ignore
        for packet in fragmented.demux():
            # Packets without a time are empty: they end a track.
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                plain.mux(packet)


def write_sound(path: str | Path, sound: Sound, *, max_bytes: int) -> None:
    """Write the sound of a file to a Wave64 file of 16-bit samples, in a form that AAC supports.

    A video with the written sound is like a video with the sound itself. The difference is in the file: it is small in
    structure, so that a reader needs neither time nor memory to open it, whatever the original was.

    Args:
        path: The file to write.
        sound: The sound.
        max_bytes: Maximum size of the file.

    Raises:
        TooLong: The file would be larger.
        ValueError: The sound cannot be decoded; the message names its file.
    """
    rate_hz, layout = _encodable(sound)
    samples = 0
    with av.open(str(path), "w", format="w64") as container:
        stream = container.add_stream("pcm_s16le", rate=rate_hz, layout=layout)  # pyright: ignore
        assert isinstance(stream, AudioStream)
        for block in sound.blocks(rate_hz, layout):
            if 2 * block.shape[1] * (samples + len(block)) > max_bytes:
                raise TooLong(
                    f"{sound.source}: {layout} at {rate_hz} Hz takes more than {max_bytes / 2**20:.1f} MiB, the maximum"
                )
            frame = _audio_frame(block, layout, rate_hz, samples)
            container.mux(stream.encode(frame))
            samples += len(block)
        container.mux(stream.encode(None))


def join_videos(
    segments: Sequence[str | Path],
    target: str | Path,
    *,
    fps: int = FPS,
    samples: np.ndarray | Sound,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    metadata: dict[str, str] | None = None,
) -> int:
    """Join silent segments of one video, add sound and return the number of frames.

    `write_video` must have written all segments with the same options. The pictures are not encoded again. The file is
    written atomically.

    Args:
        segments: Files in order.
        target: The file to write.
        fps: Frames per second.
        samples: See `write_video`.
        sample_rate_hz: See `write_video`.
        metadata: Tags of the mp4.

    Raises:
        ValueError: There are no segments, or a file cannot be decoded.
    """
    target = Path(target)
    with (
        atomic_path(target) as partial,
        av.open(url_of(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update(metadata or {})
        track: Any = None
        speech: Speech | None = None
        frames = 0
        for segment in segments:
            with open_container(segment) as source:
                pictures = source.streams.video[0]
                if track is None or speech is None:
                    track = container.add_stream_from_template(pictures)
                    speech = Speech(container, samples, sample_rate_hz, fast=False)
                assert pictures.time_base is not None
                # Length of a frame, in units of the track's clock.
                frame_ticks = Fraction(1, fps) / pictures.time_base
                segment_start = round(frames * frame_ticks)
                for packet in source.demux(pictures):
                    if packet.pts is None:
                        continue
                    packet.pts += segment_start
                    # Decoding times must rise over the whole file. A short segment reorders fewer frames than a long
                    # one, so the segments' own decoding times may fall at a border. Use the number of frames so far
                    # instead.
                    packet.dts = round((frames - _REORDERED) * frame_ticks)
                    packet.stream = track
                    container.mux(packet)
                    frames += 1
                    speech.write(until=Fraction(frames, fps))
        if speech is None:
            raise ValueError("a video needs at least one segment, got none")
        speech.close()
    return frames


class Pictures:
    """Encode pictures to the video track of a container.

    Args:
        container: The open file.
        fps: Pictures per second.
        options: Options of x264.

    Attributes:
        count: Number of pictures that have been written.
    """

    def __init__(self, container: OutputContainer, fps: int, options: dict[str, object]):
        self.count = 0
        self._container, self._fps = container, fps
        self._converter = VideoReformatter()
        self._stream = container.add_stream("libx264", rate=fps)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = options
        # Tag the colours, because players guess the colours of an untagged video from its size.
        codec = self._stream.codec_context
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709

    def write(self, picture: np.ndarray) -> None:
        """Encode one picture, uint8 [H, W, 3]. Raises ValueError if it has another type or size, or an odd side."""
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
        height, width = picture.shape[:2]
        stream = self._stream
        if self.count == 0:
            if height % 2 or width % 2:
                raise ValueError(f"frames must have even height and width, got {height}x{width}")
            stream.width, stream.height = width, height
        elif (width, height) != (stream.width, stream.height):
            raise ValueError(
                f"frame {self.count} is {height}x{width}, the first was {stream.height}x{stream.width}"
            )
        frame = self._converter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts, frame.time_base = self.count, Fraction(1, self._fps)
        self._container.mux(stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        """Write the pictures that the encoder still holds."""
        self._container.mux(self._stream.encode(None))


class Speech:
    """Encode sound to the audio track of a container, in blocks of the codec's size.

    Without sound there is no audio track, because some players fail on an empty one.

    Args:
        container: The open file.
        samples: Float32 [N] mono, the sound of a file, or live sound.
        sample_rate_hz: Rate of an array or of live sound. The sound of a file has its own rate.
        fast: Use FFmpeg's `fast` AAC coder.
    """

    def __init__(
        self,
        container: OutputContainer,
        samples: np.ndarray | Sound | LiveSound,
        sample_rate_hz: int,
        *,
        fast: bool,
    ):
        self._container = container
        if isinstance(samples, Sound):
            self._rate_hz, self._layout = _encodable(samples)
            self._blocks = samples.blocks(self._rate_hz, self._layout)
        else:
            self._rate_hz, self._layout = sample_rate_hz, "mono"
            live = isinstance(samples, LiveSound)
            self._blocks = samples if live else iter([np.asarray(samples, np.float32)[:, None]])
        # Samples that are not encoded yet.
        self._waiting = next(self._blocks, np.zeros((0, 1), np.float32))  # [n, channels]
        self._written = 0
        self._stream: AudioStream | None = None
        if len(self._waiting) or isinstance(samples, LiveSound):
            self._stream = container.add_stream("aac", rate=self._rate_hz, layout=self._layout)  # pyright: ignore
            assert self._stream is not None
            self._stream.options = {"aac_coder": "fast"} if fast else {}
            if self._rate_hz <= 24_000:
                bits_per_channel = 64_000
            elif self._layout == "mono":
                bits_per_channel = 128_000
            else:
                bits_per_channel = 96_000
            self._stream.bit_rate = bits_per_channel * self._waiting.shape[1]
            self._stream.codec_context.time_base = Fraction(1, self._rate_hz)

    def write(self, until: Fraction | None = None) -> None:
        """Encode all whole blocks that end by `until`, a time in seconds. With None, encode all remaining samples."""
        while self._stream is not None:
            if until is not None and self._written + _BLOCK > until * self._rate_hz:
                return
            while len(self._waiting) < _BLOCK and (block := next(self._blocks, None)) is not None:
                self._waiting = np.concatenate([self._waiting, block])
            if not len(self._waiting):
                return
            block, self._waiting = self._waiting[:_BLOCK], self._waiting[_BLOCK:]
            sound = _audio_frame(block, self._layout, self._rate_hz, self._written)
            self._container.mux(self._stream.encode(sound))
            self._written += len(block)

    def close(self) -> None:
        """Encode the remaining samples and write those that the encoder still holds."""
        self.write()
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))


def _audio_frame(block: np.ndarray, layout: str, rate_hz: int, first: int) -> AudioFrame:
    """Return a block of sound, float32 [n, channels], as a frame whose first sample has the number `first`."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, first, Fraction(1, rate_hz)
    return frame


def _encodable(sound: Sound) -> tuple[int, str]:
    """Return the supported rate and layout that are nearest to a sound's own."""
    rate_hz = sound.sample_rate_hz if sound.sample_rate_hz in _AAC_RATES_HZ else 48_000
    if sound.layout in (*_AAC_LAYOUTS, *_AAC_OTHER_LAYOUTS):
        return rate_hz, sound.layout
    channels = len(av.AudioLayout(sound.layout).channels)
    return rate_hz, _AAC_LAYOUTS[min(channels, len(_AAC_LAYOUTS)) - 1]
