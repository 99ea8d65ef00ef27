"""Read the sound of a file: as one mono array for audio features, or in blocks of all channels for a video's track."""

import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from xactor.media.clock import can_seek
from xactor.media.container import Source, audio_stream, decode, length_s, open_container, origin_s
from xactor.rates import SAMPLE_RATE_HZ

# A frame whose time is further than this from the end of the sound so far follows a gap, which becomes silence, or an
# overlap, which is cut. A smaller difference is removed by slow resampling.
_GAP_S = 0.05
# Options of FFmpeg's aresample. It leaves a difference of up to 20 ms, which may be rounding in the container. A larger
# one, of d seconds, changes the speed by d for one second, but by at most 5 %.
_SLOW_RESAMPLING = {
    "min_comp": "0.02",
    "comp_duration": "1",
    "max_soft_comp": "0.05",
    "min_hard_comp": "1000",
}
# The resampler is told a difference that is larger by this factor, so that a clock that is 3 % wrong is followed within
# 30 ms.
_HASTE = 2
# Channels cancel each other if the power of their average, divided by the first channel's power, is below this value:
# -20 dB.
_CANCELLED = 0.01
T = TypeVar("T")
_log = logging.getLogger(__name__)


class TooLong(ValueError):
    """Report sound that is longer than the maximum."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Refer to the sound of a file. `blocks` reads the file at each call, so even an hour of sound takes no memory."""

    source: Source
    """A path, or an open file that can seek."""
    sample_rate_hz: int
    """Sample rate of the file."""
    layout: str
    """Channels by ffmpeg's name, such as `mono`, `stereo` or `5.1`."""
    end_s: float | None = None
    """Time at which the sound is cut off, in seconds; None means its end."""

    @classmethod
    def of(cls, source: Source) -> "Sound":
        """Return the sound of a file, with the rate and layout of its audio track.

        Raises:
            ValueError: The file cannot be opened or has no audio track; the message names it.
        """
        with open_container(source) as container:
            stream = audio_stream(container, source)
            return cls(source=source, sample_rate_hz=stream.rate, layout=stream.layout.name)

    def blocks(self, sample_rate_hz: int, layout: str) -> Iterator[np.ndarray]:
        """Yield the sound at a rate and in a layout: float32 [n, channels] in [-1, 1].

        Raises:
            ValueError: The file cannot be decoded or has no sound; the message names it.
        """
        left = math.inf if self.end_s is None else round(self.end_s * sample_rate_hz)
        for block in self._all_blocks(sample_rate_hz, layout):
            yield block if len(block) <= left else block[: int(left)]
            left -= len(block)
            if left <= 0:
                return

    def _all_blocks(self, sample_rate_hz: int, layout: str) -> Iterator[np.ndarray]:
        """Yield the sound up to the end of the file."""
        with open_container(self.source) as container:
            start_s = origin_s(container)
            conversion = _Conversion(sample_rate_hz, layout)
            stream = audio_stream(container, self.source)
            for frame, is_last in _with_last_marked(decode(container, stream, self.source)):
                assert isinstance(frame, AudioFrame)
                due = None if frame.time is None else (frame.time - start_s) * sample_rate_hz
                yield from conversion.place(frame, due)
                if not is_last:
                    yield from conversion.take(frame)
                    continue
                # A file with any sound gives at least one sample.
                min_samples = 0 if conversion.made else 1
                # Codecs pad their last block. The container gives the duration of the sound in it.
                padding_s = frame.samples / frame.sample_rate - (length_s(frame) or np.inf)
                tail = [*conversion.take(frame), *conversion.rest()]
                padding = round(padding_s * sample_rate_hz) if padding_s > 1e-3 else 0
                if tail:
                    yield np.concatenate(tail)[: max(sum(map(len, tail)) - padding, min_samples)]
            decoded_s, declared_s = conversion.made / sample_rate_hz, _declared_s(container, stream)
            if decoded_s < 0.9 * declared_s:
                raise ValueError(
                    f"{self.source}: corrupt or truncated "
                    f"({decoded_s:.2f} of {declared_s:.2f} s can be decoded)"
                )
            if not conversion.made:
                raise ValueError(f"{self.source}: the audio track is empty")
            self._note(conversion)

    def _note(self, conversion: "_Conversion") -> None:
        """Log what was done to the sound so that it follows its times, if it can be noticed."""
        rate_hz = conversion.rate_hz
        stretched = conversion.made - conversion.unstretched
        done = (
            ("slowed down by {:.2f} s", stretched),
            ("speeded up by {:.2f} s", -stretched),
            ("{:.2f} s of gaps made silent", conversion.silent),
            ("{:.2f} s of overlaps cut", conversion.cut),
        )
        notes = [text.format(samples / rate_hz) for text, samples in done if samples > _GAP_S * rate_hz]
        if notes:
            _log.warning("%s: the sound is placed by its times: %s", self.source, ", ".join(notes))


class LiveSound:
    """Iterate over blocks of mono sound that arrive while a video is written.

    The iteration stops when no block is waiting, and continues after the next `hear`.
    """

    def __init__(self):
        self._blocks: deque[np.ndarray] = deque()

    def hear(self, samples: np.ndarray) -> None:
        """Append samples, float32 [N]."""
        self._blocks.append(np.asarray(samples, np.float32)[:, None])

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if not self._blocks:
            raise StopIteration
        return self._blocks.popleft()


def read_audio(
    source: Source, sample_rate_hz: int = SAMPLE_RATE_HZ, *, max_seconds: float | None = None
) -> np.ndarray:
    """Read the sound of any file that PyAV reads, video included: float32 [N], mono, in [-1, 1].

    Several channels are mixed down to one. If two channels cancel each other, the first one is used.

    Args:
        source: A path, or an open file that can seek.
        sample_rate_hz: Rate of the returned samples.
        max_seconds: Maximum length of the sound; None means no maximum.

    Raises:
        TooLong: The sound is longer than `max_seconds`.
        ValueError: The file cannot be decoded, has no audio track or no sound; the message names it.
    """
    mixed, first, samples = [], [], 0
    # Power of the average of the channels, and of the first one.
    powers = np.zeros(2)
    sound = Sound.of(source)
    layout = "stereo" if av.AudioLayout(sound.layout).nb_channels == 2 else "mono"
    for block in sound.blocks(sample_rate_hz, layout):
        first.append(block[:, 0].copy())
        mixed.append(block.mean(axis=1) if layout == "stereo" else first[-1])
        powers += [np.square(part[-1]).sum(dtype=np.float64) for part in (mixed, first)]
        samples += len(block)
        if max_seconds is not None and samples > max_seconds * sample_rate_hz:
            raise TooLong(f"{source}: longer than {max_seconds:g} s, the maximum")
    return np.concatenate(first if powers[0] < _CANCELLED * powers[1] else mixed)


def mono(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Convert samples of any rate to the form that the models take: float32 [N], mono, 16 kHz.

    Several channels are averaged. If they cancel each other, the first one is used.

    Args:
        samples: [N] or [N, channels], float in [-1, 1] or int16.
        sample_rate_hz: Rate of the samples.

    Raises:
        ValueError: The samples have another shape or type, or are not finite, or the rate is below 1.
    """
    samples = np.asarray(samples)
    is_int16 = samples.dtype == np.int16
    if samples.ndim not in (1, 2) or not (is_int16 or np.issubdtype(samples.dtype, np.floating)):
        raise ValueError(
            f"samples must be float or int16, [N] or [N, channels], got {samples.dtype} {list(samples.shape)}"
        )
    if sample_rate_hz < 1:
        raise ValueError(f"the sample rate must be >= 1 Hz, got {sample_rate_hz}")
    samples = samples.astype(np.float32) / (32_768 if is_int16 else 1)
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite, got NaN or infinite numbers")
    if samples.ndim == 2:
        mean, first = samples.mean(axis=1), samples[:, 0]
        samples = first if np.square(mean).sum() < _CANCELLED * np.square(first).sum() else mean
    return resample(samples, sample_rate_hz, SAMPLE_RATE_HZ)


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample mono float32 [N] to another rate: [about N x to_hz / from_hz]."""
    if from_hz == to_hz or not samples.size:
        return np.asarray(samples, dtype=np.float32)
    frame = AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono"
    )
    frame.sample_rate = from_hz
    conversion = _Conversion(to_hz, "mono")
    parts = [*conversion.place(frame), *conversion.take(frame), *conversion.rest()]
    return np.concatenate(parts)[:, 0]


class _Conversion:
    """Convert decoded frames of any rate and layout to blocks float32 [n, channels] of one rate and layout.

    The sound is placed by its times. A small difference between the times and the number of samples is removed by
    resampling slowly, so that it is not heard; a large gap becomes silence, and a large overlap is cut.

    Attributes:
        rate_hz: Sample rate of the blocks.
        made: Number of samples per channel in the blocks that have been yielded.
        silent: Number of samples of silence in gaps.
        cut: Number of samples that were cut, because they overlapped.
        unstretched: `made`, if no sound had been resampled slowly.
    """

    def __init__(self, sample_rate_hz: int, layout: str):
        self.made = self.silent = self.cut = 0
        self.unstretched = 0.0
        self.rate_hz, self._layout = sample_rate_hz, layout
        self._channels = len(av.AudioLayout(layout).channels)
        self._resampler: av.AudioResampler | None = None
        self._source: tuple | None = None
        # Number of the output sample with which a frame without a time begins.
        self._next = 0.0
        # Time of the next frame for the resampler, in output samples.
        self._time = 0
        # Number of the next output samples that are to be cut.
        self._surplus = 0

    def place(self, frame: AudioFrame, due: float | None = None) -> Iterator[np.ndarray]:
        """Yield what comes before a frame: samples that the resampler still holds, and the silence of a gap.

        Args:
            frame: The next frame.
            due: Number of the output sample with which the frame begins; None means at the end of the last frame.
        """
        due = self._next if due is None else due
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        is_first = self._source is None
        # The resampler holds a few samples. They last less than 2 ms, so they do not matter here.
        is_far = abs(due - self._position) > _GAP_S * self.rate_hz
        # The format may change in the middle of a file.
        if is_first or is_far or source != self._source:
            yield from self.rest()
            self._source = source
        if is_first or is_far:
            late = round(due) - self._position
            self._surplus += max(-late, 0)
            self.unstretched += late
            if not is_first:
                self.silent, self.cut = self.silent + max(late, 0), self.cut + max(-late, 0)
            yield from self._silence(late)
        # A resampler measures differences from the first time that it sees, so that time is the true position.
        haste = 0 if self._resampler is None else _HASTE
        self._time = self._position + round(haste * (due - self._position))
        length = frame.samples * self.rate_hz / frame.sample_rate
        self._next = due + length
        self.unstretched += length

    def take(self, frame: AudioFrame) -> Iterator[np.ndarray]:
        """Take a frame that `place` has placed, and yield the blocks that are finished. Overwrite the frame's time."""
        frame.pts, frame.time_base = self._time, Fraction(1, self.rate_hz)
        if self._resampler is None:
            # A resampler without anything to convert does not look at the times.
            name = "fltp" if frame.format.name == "flt" else "flt"
            self._resampler = av.AudioResampler(
                format=name, layout=self._layout, rate=self.rate_hz, options=_SLOW_RESAMPLING
            )
        yield from self._blocks(frame)

    def rest(self) -> Iterator[np.ndarray]:
        """Yield the samples that the resampler still holds."""
        if self._resampler is not None:
            yield from self._blocks(None)
        self._resampler = None

    @property
    def _position(self) -> int:
        """Number of the output sample that the next sample becomes."""
        return self.made - self._surplus

    def _silence(self, samples: int) -> Iterator[np.ndarray]:
        """Yield silence in blocks of one second, because a file's clock may jump by hours."""
        for first in range(0, samples, self.rate_hz):
            block = np.zeros((min(self.rate_hz, samples - first), self._channels), np.float32)
            self.made += len(block)
            yield block

    def _blocks(self, frame: AudioFrame | None) -> Iterator[np.ndarray]:
        """Yield the blocks that the resampler returns for a frame, or its rest if there is no frame."""
        assert self._resampler is not None
        for out in self._resampler.resample(frame):
            block = out.to_ndarray()
            block = block.T if out.format.is_planar else block.reshape(-1, self._channels)
            cut = min(self._surplus, len(block))
            self._surplus -= cut
            self.made += len(block) - cut
            if cut < len(block):
                yield np.nan_to_num(block[cut:], nan=0.0, posinf=1.0, neginf=-1.0)


def _declared_s(container: InputContainer, stream: AudioStream) -> float:
    """Return the length of the sound in seconds according to the file, or 0 if the file does not give it."""
    # For these formats FFmpeg guesses the length from the bit rate.
    if container.format.name in ("mp3", "aac"):
        return 0.0
    # FFmpeg takes the last time in the file for the length, although the clock may jump.
    if not can_seek(container):
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # The length of the whole file is the sound's only if there is no other track.
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _with_last_marked(frames: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Yield each frame, and whether it is the last one."""
    before = next(frames, None)
    for frame in frames:
        assert before is not None
        yield before, False
        before = frame
    if before is not None:
        yield before, True
