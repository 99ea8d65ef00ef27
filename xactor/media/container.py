"""Open and decode files that may be damaged, with errors that name the file and the cause."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xactor.media.clock import in_time, packets

Source = str | Path | Any
"""A path, or a file that is open for reading and can seek."""
_log = logging.getLogger(__name__)

# Formats that are accepted: only those that contain their media. FFmpeg would also open playlists, which refer to other
# files and hosts.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,asf,ogg,mxf,nut,"
    "wav,w64,mp3,flac,aac,ac3,eac3,aiff,au,amr,caf,wv,ape,tta"
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
        ".mpe",
        ".m2v",
        ".ts",
        ".mts",
        ".m2ts",
        ".m2t",
        ".flv",
        ".f4v",
        ".wmv",
        ".asf",
        ".3gp",
        ".3g2",
        ".ogv",
        ".ogm",
        ".mxf",
        ".nut",
        ".vob",
    ]
)
"""Suffixes, in lower case, of the files that are taken for videos in a folder."""
# Size of the buffer through which an open file is read, 1 MiB. It is large, because the file may be remote.
_BUFFER_BYTES = 1 << 20
# A file counts as corrupt if more packets than this, and more than 1 % of its packets, are damaged. Otherwise the
# damaged packets are skipped.
_MAX_DAMAGED_PACKETS = 3


def url_of(path: str | Path) -> str:
    """Return a path in a form in which FFmpeg takes no part of it for a protocol, such as `a` in `a:b.mp4`."""
    return f"file:{path}"


@contextmanager
def open_container(source: Source) -> Iterator[InputContainer]:
    """Open a file for reading and close it at the end of the `with` block.

    Raises:
        ValueError: The file is missing, is empty or has an unknown format; the message names it.
    """
    options = {"format_whitelist": _FORMATS}
    try:
        if isinstance(source, str | Path):
            container = av.open(url_of(source), container_options=options)
        else:
            source.seek(0)
            container = av.open(source, container_options=options, buffer_size=_BUFFER_BYTES)
    except (FFmpegError, ValueError) as error:
        if not isinstance(source, str | Path):
            raise ValueError(f"{source}: cannot be decoded ({error})") from error
        reason = str(error).replace(url_of(source), str(source))
        if not Path(source).exists():
            raise ValueError(f"{source}: no such file") from error
        if Path(source).is_file() and Path(source).stat().st_size == 0:
            raise ValueError(f"{source}: the file is empty") from error
        raise ValueError(f"{source}: cannot be decoded ({reason})") from error
    # A container that is open for reading is an InputContainer, but PyAV's types do not say so.
    assert isinstance(container, InputContainer)
    with container:
        yield container


def video_stream(container: InputContainer, source: object) -> VideoStream:
    """Return the video track that FFmpeg plays by default. Raises ValueError if none can be decoded."""
    stream = _best(container, "video", source)
    assert isinstance(stream, VideoStream)
    return stream


def audio_stream(container: InputContainer, source: object) -> AudioStream:
    """Return the audio track that FFmpeg plays by default. Raises ValueError if none can be decoded."""
    stream = _best(container, "audio", source)
    assert isinstance(stream, AudioStream)
    return stream


def _best(container: InputContainer, kind: Literal["video", "audio"], source: object) -> Stream:
    stream = container.streams.best(kind)
    if stream is None:
        raise ValueError(f"{source}: no {kind} track")
    if stream.codec_context is None:
        raise ValueError(f"{source}: FFmpeg has no decoder for the {kind} track")
    return stream


def decode(container: InputContainer, stream, source: object) -> Iterator[AudioFrame | VideoFrame]:
    """Yield the frames of one stream with the times at which a player presents them. Skip a few damaged packets.

    Every picture has a time; sound may have none.

    Args:
        container: The open file, at its beginning.
        stream: The audio or video stream to decode.
        source: Path of the file, or the file, for messages.

    Raises:
        ValueError: The file is corrupt or truncated, or its clock cannot be followed.
    """
    frames = _decoded(container, stream, source)
    yield from in_time(frames, container, stream) if isinstance(stream, VideoStream) else frames  # type: ignore[misc]


def _decoded(container: InputContainer, stream, source: object) -> Iterator[AudioFrame | VideoFrame]:
    """Yield the frames of one stream as the decoder returns them. See `decode`."""
    count = damaged = 0
    # End of the packets, in units of the stream's clock.
    end = 0
    last_error: Exception | None = None
    try:
        # The last packet is empty and flushes the decoder.
        for packet in packets(container, stream, source):
            count += 1
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
            try:
                frames = packet.decode()
            except FFmpegError as error:
                damaged += 1
                last_error = error
                continue
            yield from frames  # type: ignore[misc]
    except FFmpegError as error:
        raise ValueError(f"{source}: corrupt ({error})") from error
    # The last packet is empty and can always be decoded.
    all_damaged = damaged > 0 and damaged >= count - 1
    if damaged > max(_MAX_DAMAGED_PACKETS, count // 100) or all_damaged:
        raise ValueError(f"{source}: corrupt ({damaged} of {count} packets cannot be decoded: {last_error})")
    # An mp4 is truncated if its packets end before 90 % of the duration that its index gives. The number of packets in
    # the index is no measure: it includes packets that an edit list cuts off, and for uncompressed sound it is the
    # number of samples.
    declared = stream.duration if "mp4" in container.format.name else None
    if declared and end < 0.9 * declared:
        found_s, declared_s = (float(ticks * stream.time_base) for ticks in (end, declared))
        raise ValueError(f"{source}: truncated ({found_s:.2f} of {declared_s:.2f} s can be read)")
    if damaged:
        _log.warning("%s: %d of %d packets could not be decoded and were skipped", source, damaged, count)


def origin_s(container: InputContainer) -> float:
    """Return the time at which a player would start, in seconds on the file's own clock."""
    return (container.start_time or 0) / av.time_base


def length_s(frame: AudioFrame | VideoFrame) -> float | None:
    """Return the frame's duration in seconds according to the container, or None if the container gives none."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
