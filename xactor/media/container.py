"""Opening and decoding files that may be damaged, with errors that name the file and the cause."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

Source = str | Path | Any  # a path, or a file that is open for reading and can seek
_log = logging.getLogger(__name__)

# Files that hold what they show. Playlists and lists of parts, which FFmpeg would open too, name other files and hosts.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,asf,ogg,mxf,nut,"
    "wav,w64,mp3,flac,aac,ac3,eac3,aiff,au,amr,caf,wv,ape,tta"
)
_BUFFER_BYTES = 1 << 20  # of an open file that may be far away
# A damaged packet is a gap; more than so many of them (and 1 %) are a corrupt file.
_FORGIVEN_PACKETS = 3


@contextmanager
def open_container(source: Source) -> Iterator[InputContainer]:
    """The file, opened for reading. Raises ValueError: missing, empty or of no format that is known."""
    only = {"format_whitelist": _FORMATS}
    try:
        if isinstance(source, str | Path):
            container = av.open(str(source), container_options=only)
        else:
            source.seek(0)
            container = av.open(source, container_options=only, buffer_size=_BUFFER_BYTES)
    except (FFmpegError, ValueError) as error:
        if not isinstance(source, str | Path):
            raise ValueError(f"{source}: cannot be decoded ({error})") from error
        if not Path(source).exists():
            raise ValueError(f"{source}: no such file") from error
        empty = Path(source).is_file() and Path(source).stat().st_size == 0
        raise ValueError(
            f"{source}: {'the file is empty' if empty else f'cannot be decoded ({error})'}"
        ) from error
    assert isinstance(container, InputContainer)  # by its mode, which types do not see here
    with container:
        yield container


def decode(container: InputContainer, stream, source: object) -> Iterator[AudioFrame | VideoFrame]:
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
