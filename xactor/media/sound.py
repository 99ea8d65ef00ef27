"""The sound of a file: whole and mono for features, or block by block as it is for the track of a video."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer

from xactor.media.container import Source, decode, length_s, open_container, origin_s
from xactor.rates import SAMPLE_RATE_HZ

# Sound that a file's clock jumps over is silence; smaller steps are rounding in the container.
_GAP_S = 0.05
T = TypeVar("T")


class TooLong(ValueError):
    """More sound than is taken."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of a file with its own rate and channels, read anew each time: an hour takes no memory.

    Attributes:
        source: a path, or an open file that can seek.
        layout: the channels by ffmpeg's name, such as `mono`, `stereo` or `5.1`.
    """

    source: Source
    sample_rate_hz: int
    layout: str

    @classmethod
    def of(cls, source: Source) -> "Sound":
        """Raises ValueError naming the file when it cannot be opened or has no audio track."""
        with open_container(source) as container:
            if not container.streams.audio:
                raise ValueError(f"{source}: no audio track")
            stream = container.streams.audio[0]
            return cls(source=source, sample_rate_hz=stream.rate, layout=stream.layout.name)

    def blocks(self, sample_rate_hz: int, layout: str) -> Iterator[np.ndarray]:
        """The sound at any rate and in any layout, in order: float32 [n, channels], in [-1, 1].

        Raises ValueError naming the file when it cannot be decoded or holds no sound.
        """
        with open_container(self.source) as container:
            start_s = origin_s(container)
            conversion = _Conversion(sample_rate_hz, layout)
            taken = 0.0  # outgoing samples that the frames so far stand for; some are still held back
            for frame, is_last in _marked(decode(container, container.streams.audio[0], self.source)):
                assert isinstance(frame, AudioFrame)
                due = taken if frame.time is None else round((frame.time - start_s) * sample_rate_hz)
                if due - taken > _GAP_S * sample_rate_hz:
                    yield from conversion.rest()
                    yield from conversion.silence(int(due) - conversion.made)
                    taken = conversion.made
                taken += frame.samples * sample_rate_hz / frame.sample_rate
                if not is_last:
                    yield from conversion.take(frame)
                    continue
                # Codecs fill their last block up; the container says how much of it is sound.
                before = conversion.made
                end = np.concatenate([*conversion.take(frame), *conversion.rest()])
                surplus_s = frame.samples / frame.sample_rate - (length_s(frame) or np.inf)
                cut = round(surplus_s * sample_rate_hz) if surplus_s > 1e-3 else 0
                yield end[: max(len(end) - cut, 0 if before else 1)]
            holds_s, declared_s = taken / sample_rate_hz, _declared_s(container)
            if holds_s < 0.9 * declared_s:
                raise ValueError(
                    f"{self.source}: corrupt or cut off ({holds_s:.2f} of {declared_s:.2f} s can be decoded)"
                )
            if not taken:
                raise ValueError(f"{self.source}: the audio track is empty")


class LiveSound:
    """Mono sound that comes while it is written: an iterator over the blocks that are there by now."""

    def __init__(self):
        self._blocks: deque[np.ndarray] = deque()

    def hear(self, samples: np.ndarray) -> None:
        """The next of it, float32 [N]."""
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
    """The sound of any file PyAV reads, video included: float32 [N], mono, in [-1, 1].

    Several channels are mixed down. Raises ValueError naming the file when it cannot be decoded, has no audio
    track, holds no sound, or holds more than `max_seconds` of it.
    """
    pieces, samples = [], 0
    for block in Sound.of(source).blocks(sample_rate_hz, "mono"):
        pieces.append(block[:, 0])
        samples += len(block)
        if max_seconds is not None and samples > max_seconds * sample_rate_hz:
            raise TooLong(f"{source}: longer than {max_seconds:g} s, the most that is taken")
    return np.concatenate(pieces)


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Mono float32 [N] at one rate to [about N x to / from] at another."""
    if from_hz == to_hz or not samples.size:
        return np.asarray(samples, dtype=np.float32)
    frame = AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono"
    )
    frame.sample_rate = from_hz
    conversion = _Conversion(to_hz, "mono")
    return np.concatenate([*conversion.take(frame), *conversion.rest()])[:, 0]


class _Conversion:
    """Decoded frames to blocks float32 [n, channels] of one rate and layout, whatever the frames' own, frame by frame.

    Attributes:
        made: how many samples have come out.
    """

    def __init__(self, sample_rate_hz: int, layout: str):
        self.made = 0
        self._rate_hz, self._layout = sample_rate_hz, layout
        self._channels = len(av.AudioLayout(layout).channels)
        self._resampler: av.AudioResampler | None = None
        self._source: tuple | None = None

    def take(self, frame: AudioFrame) -> Iterator[np.ndarray]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:  # also in the middle of a file
            yield from self.rest()
            self._source = source
            self._resampler = av.AudioResampler(format="flt", layout=self._layout, rate=self._rate_hz)
        frame.pts = None
        assert self._resampler is not None
        for out in self._resampler.resample(frame):
            yield self._block(out)

    def rest(self) -> Iterator[np.ndarray]:
        """What is held back."""
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                yield self._block(out)
        self._resampler = self._source = None

    def silence(self, samples: int) -> Iterator[np.ndarray]:
        """In pieces of a second: a file's clock may jump by hours."""
        for first in range(0, samples, self._rate_hz):
            piece = np.zeros((min(self._rate_hz, samples - first), self._channels), np.float32)
            self.made += len(piece)
            yield piece

    def _block(self, frame: AudioFrame) -> np.ndarray:
        block = frame.to_ndarray().reshape(-1, self._channels)
        self.made += len(block)
        return np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0)


def _declared_s(container: InputContainer) -> float:
    """How long the file says its sound is; 0 where it does not say."""
    if container.format.name in ("mp3", "aac"):  # guessed from the bit rate
        return 0.0
    stream = container.streams.audio[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _marked(frames: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each frame, and whether it is the last."""
    before = next(frames, None)
    for frame in frames:
        assert before is not None
        yield before, False
        before = frame
    if before is not None:
        yield before, True
