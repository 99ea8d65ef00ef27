"""Opening and decoding files that may be damaged, with errors that name the file and the cause."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

_log = logging.getLogger(__name__)

# A damaged packet is a gap; more than so many of them (and 1 %) are a corrupt file.
_FORGIVEN_PACKETS = 3


@contextmanager
def open_container(source: str | Path) -> Iterator[InputContainer]:
    """The file, opened for reading. Raises ValueError: missing, empty or of no format that is known."""
    try:
        container = av.open(str(source))
    except (FFmpegError, ValueError) as error:
        if not Path(source).exists():
            raise ValueError(f"{source}: no such file") from error
        empty = Path(source).is_file() and Path(source).stat().st_size == 0
        raise ValueError(
            f"{source}: {'the file is empty' if empty else f'cannot be decoded ({error})'}"
        ) from error
    with container:
        yield container


def decode(container: InputContainer, stream, source) -> Iterator[AudioFrame | VideoFrame]:
    """The frames of one stream. A few damaged packets are left out; more raise ValueError, as does a cut-off file."""
    packets = bad = 0
    last: Exception | None = None
    try:
        for packet in container.demux(stream):  # the last one is empty and flushes the decoder
            packets += 1
            try:
                frames = packet.decode()
            except FFmpegError as error:
                bad, last = bad + 1, error
                continue
            yield from frames  # type: ignore[misc]
    except FFmpegError as error:
        raise ValueError(f"{source}: corrupt ({error})") from error
    if bad > max(_FORGIVEN_PACKETS, packets // 100) or (bad and bad >= packets - 1):
        raise ValueError(f"{source}: corrupt ({bad} of {packets} packets cannot be decoded: {last})")
    # An mp4's index tells how many packets there are to be.
    expected = stream.frames if "mp4" in container.format.name else 0
    if packets - 1 < 0.9 * expected:
        raise ValueError(f"{source}: truncated (it ends after {packets - 1} of {expected} packets)")
    if bad:
        _log.warning("%s: %d of %d packets could not be decoded and were left out", source, bad, packets)


def origin_s(container: InputContainer) -> float:
    """Where a player would start, on the file's own clock."""
    return (container.start_time or 0) / av.time_base


def length_s(frame: AudioFrame | VideoFrame) -> float | None:
    """How long the container says the frame lasts."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
