"""Read some pictures of a video without decoding all pictures before them."""

import io
import math
from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xactor.media.clock import can_seek, in_time, packets, usual_s
from xactor.media.container import length_s, origin_s
from xactor.media.pictures import PictureConverter
from xactor.rates import FPS

# If the next picture is at most this much later, decoding all pictures in between is as fast as a seek.
_MAX_DECODE_S = 1.0
# A seek aims at a time this many seconds before the wanted picture. The values are tried in this order: a seek may end
# after the wanted picture, by the codec's delay, and the next try must then aim earlier.
_SEEK_BEFORE_S = (0.0, 0.5, 2.0, 8.0)
# Maximum number of bytes, 64 MiB, of the packets that are kept before it is known from where to decode.
_MAX_WAITING_BYTES = 64 << 20


def pick_frames(video: bytes, numbers: Sequence[int], fps: float = FPS) -> Iterator[np.ndarray]:
    """Yield some frames of a video, numbered as `read_frames` does: uint8 [H, W, 3] RGB.

    Args:
        video: Content of the file.
        numbers: Frame numbers in ascending order.
        fps: Rate at which frames are numbered.

    Raises:
        ValueError: There is no video track, it is damaged before a requested frame, or it is too short.
    """
    try:
        with av.open(io.BytesIO(video), "r") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise ValueError("no video track")
            yield from _pick(container, stream, numbers, fps)
    except FFmpegError as error:
        raise ValueError(f"cannot be decoded ({error.strerror})") from error


def _pick(
    container: InputContainer, stream: VideoStream, numbers: Sequence[int], fps: float
) -> Iterator[np.ndarray]:
    """Yield the picture that a player shows at (n + 1/2) / fps, for each number n."""
    stream.thread_count = 1
    start_s = origin_s(container)
    frames: Iterator[VideoFrame] = iter(())
    converter = PictureConverter(stream)
    current: VideoFrame | None = None
    following: VideoFrame | None = None
    for n in numbers:
        due_s = (n + 0.5) / fps
        is_far = (
            current is not None and can_seek(container) and due_s > _time(current) - start_s + _MAX_DECODE_S
        )
        if current is None or is_far:
            frames = decode_from(container, stream, start_s + due_s, "the video")
            current, following = next(frames, None), next(frames, None)
            if current is None:
                raise ValueError("the video track is empty")
        while following is not None and due_s >= _time(following) - start_s:
            current, following = following, next(frames, None)
        # The current picture is the last one.
        if following is None:
            end_s = _time(current) - start_s + (length_s(current) or usual_s(stream, fps))
            if n and due_s >= end_s:
                count = max(math.ceil(end_s * fps - 0.5), 1)
                raise ValueError(f"ends after {count} frames, frame {n} was requested")
        yield converter(current)


def decode_from(
    container: InputContainer, stream: VideoStream, due_s: float, source: object
) -> Iterator[VideoFrame]:
    """Yield the frames from a keyframe no later than `due_s`, or from the beginning if there is no such keyframe.

    Args:
        container: The open file. It must be at its beginning if `can_seek` is false.
        stream: Its video stream.
        due_s: Time in seconds on the file's clock, without its jumps.
        source: Path of the file, or the file, for messages.
    """
    assert stream.time_base is not None
    if not can_seek(container):
        # Frames before the keyframe depend on frames that are not decoded.
        frames = dropwhile(lambda frame: not frame.key_frame, _walk(container, stream, due_s, source))
        yield from in_time(frames, container, stream)
        return
    begin_s = float((stream.start_time or 0) * stream.time_base)
    for before_s in _SEEK_BEFORE_S:
        at_s = due_s - before_s
        if at_s <= begin_s:
            break
        container.seek(round(at_s / float(stream.time_base)), stream=stream)
        # Frames before the keyframe depend on frames that the seek has skipped.
        frames = dropwhile(lambda frame: not frame.key_frame, _decoded(packets(container, stream, source)))
        frames = in_time(frames, container, stream)
        first = next(frames, None)
        if first is not None and _time(first) <= due_s + 1e-6:
            yield from chain([first], frames)
            return
    container.seek(stream.start_time or 0, stream=stream)
    yield from in_time(_decoded(packets(container, stream, source)), container, stream)


def _walk(
    container: InputContainer, stream: VideoStream, due_s: float, source: object
) -> Iterator[VideoFrame]:
    """Read all packets, but decode only those from the last keyframe before `due_s`. See `decode_from`."""
    assert stream.time_base is not None
    # Packets from the last keyframe on, until the packet that is due.
    waiting: list[Packet] = []
    waiting_bytes = 0
    due = due_s / float(stream.time_base)
    walk = packets(container, stream, source)
    for packet in walk:
        shown = packet.dts if packet.pts is None else packet.pts
        if packet.is_keyframe and shown is not None and shown <= due:
            waiting, waiting_bytes = [], 0
        waiting.append(packet)
        waiting_bytes += packet.size
        if packet.dts is None or packet.dts > due or waiting_bytes > _MAX_WAITING_BYTES:
            break
    yield from _decoded(chain(waiting, walk))


def _decoded(packets: Iterator[Packet]) -> Iterator[VideoFrame]:
    for packet in packets:
        yield from packet.decode()  # type: ignore[misc]


def _time(frame: VideoFrame) -> float:
    assert frame.time is not None
    return frame.time
