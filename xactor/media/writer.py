"""Write pictures and sound to an mp4 atomically."""

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

from xactor.atomic_path import atomic_path
from xactor.media.container import open_container
from xactor.media.sound import LiveSound, Sound
from xactor.rates import FPS, SAMPLE_RATE_HZ

# Rates and layouts that AAC supports. Other rates become 48 kHz; other layouts become the usual one with as many
# channels, or fewer.
_AAC_RATES_HZ = frozenset(
    (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
)
# Usual layouts, by the number of channels.
_AAC_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1")
_AAC_OTHER_LAYOUTS = ("3.0", "quad")
# Samples per channel in an AAC frame.
_BLOCK = 1024
# Frames by which decoding is ahead of showing, with x264's usual B-frames.
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

    The index is in front (faststart). The file is written atomically, on one thread, so that equal input gives equal
    bytes. Neither pictures nor a file's sound are held in memory.

    Args:
        path: The file to write.
        frames: uint8 [H, W, 3]; H and W must be even (yuv420p).
        fps: Frames a second.
        samples: Float32 [N] mono at `sample_rate_hz`, or the sound of a file, which keeps its rate and channels as far
            as AAC supports them. No samples give a video without an audio track.
        sample_rate_hz: Rate of `samples`, unless they are the sound of a file.
        crf: Quality of x264: 0 is lossless, larger is worse.
        preset: Preset of x264; "ultrafast" also encodes the sound faster.
        keyframe_every: Bound on the distance of keyframes in frames; None leaves it to x264.
        metadata: Tags of the mp4.
    """
    path = Path(path)
    if isinstance(samples, np.ndarray) and samples.ndim != 1:
        raise ValueError(f"samples must be mono [N], got shape {samples.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata.update(metadata or {})
        # Without mbtree, which reads uninitialised memory if the width is no multiple of 128 px, and then encodes
        # the same frames differently each time.
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
            # Interleave with the pictures, so that a player need not seek.
            speech.write(until=Fraction(pictures.count, fps))
        if not pictures.count:
            raise ValueError("a video needs at least one frame, got none")
        speech.close()
        pictures.close()
    return pictures.count


def remux(source: str | Path, target: str | Path) -> None:
    """Convert a fragmented mp4 to a plain one with its index in front, without encoding again."""
    with (
        av.open(str(source)) as fragmented,
        av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as plain,
    ):
        plain.metadata.update({"comment": fragmented.metadata.get("comment", "")})
        tracks = {stream.index: plain.add_stream_from_template(stream) for stream in fragmented.streams}  # pyright: ignore
        for packet in fragmented.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                plain.mux(packet)


def join_videos(
    segments: Sequence[str | Path],
    target: str | Path,
    *,
    fps: int = FPS,
    samples: np.ndarray | Sound,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    metadata: dict[str, str] | None = None,
) -> int:
    """Join silent segments of one video, written alike by `write_video`, add sound and return the number of frames.

    The pictures are not encoded again. The file is written atomically.

    Args:
        segments: Files in order.
        target: The file to write.
        fps: Frames a second.
        samples: See `write_video`.
        sample_rate_hz: See `write_video`.
        metadata: Tags of the mp4.
    """
    target = Path(target)
    with (
        atomic_path(target) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
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
                frame = Fraction(1, fps) / pictures.time_base
                first = round(frames * frame)
                for packet in source.demux(pictures):
                    if packet.pts is None:
                        continue
                    # Short segments have fewer reordered frames than long ones, but decoding times must rise.
                    packet.pts, packet.dts = packet.pts + first, round((frames - _REORDERED) * frame)
                    packet.stream = track
                    container.mux(packet)
                    frames += 1
                    speech.write(until=Fraction(frames, fps))
        if speech is None:
            raise ValueError("a video needs at least one segment, got none")
        speech.close()
    return frames


class Pictures:
    """Encode the video track."""

    def __init__(self, container: OutputContainer, fps: int, options: dict[str, object]):
        self.count = 0
        self._container, self._fps = container, fps
        self._stream = container.add_stream("libx264", rate=fps)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = options

    def write(self, picture: np.ndarray) -> None:
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
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self.count, Fraction(1, self._fps)
        self._container.mux(stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))


class Speech:
    """Encode the audio track in the codec's blocks. Without sound it has none: some players fail on an empty one."""

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
            each = 64_000 if self._rate_hz <= 24_000 else 128_000 if self._layout == "mono" else 96_000
            self._stream.bit_rate = each * self._waiting.shape[1]
            self._stream.codec_context.time_base = Fraction(1, self._rate_hz)

    def write(self, until: Fraction | None = None) -> None:
        """Encode all whole blocks up to a time in seconds, or all remaining samples."""
        while self._stream is not None:
            if until is not None and self._written + _BLOCK > until * self._rate_hz:
                return
            while len(self._waiting) < _BLOCK and (block := next(self._blocks, None)) is not None:
                self._waiting = np.concatenate([self._waiting, block])
            if not len(self._waiting):
                return
            block, self._waiting = self._waiting[:_BLOCK], self._waiting[_BLOCK:]
            sound = AudioFrame.from_ndarray(
                np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=self._layout
            )
            sound.sample_rate, sound.pts = self._rate_hz, self._written
            sound.time_base = Fraction(1, self._rate_hz)
            self._container.mux(self._stream.encode(sound))
            self._written += len(block)

    def close(self) -> None:
        self.write()
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))


def _encodable(sound: Sound) -> tuple[int, str]:
    """Return the supported rate and layout that are nearest to a sound's own."""
    rate_hz = sound.sample_rate_hz if sound.sample_rate_hz in _AAC_RATES_HZ else 48_000
    if sound.layout in (*_AAC_LAYOUTS, *_AAC_OTHER_LAYOUTS):
        return rate_hz, sound.layout
    channels = len(av.AudioLayout(sound.layout).channels)
    return rate_hz, _AAC_LAYOUTS[min(channels, len(_AAC_LAYOUTS)) - 1]
