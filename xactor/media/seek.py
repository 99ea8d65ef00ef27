"""Read some pictures of a video without decoding all pictures before them."""

import io
from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xactor.media.container import length_s, origin_s
from xactor.media.pictures import PictureConverter
from xactor.rates import FPS

# If the next picture is at most this much later, decoding all pictures in between is as fast as a seek.
_MAX_DECODE_S = 1.0
# A seek aims at a time this many seconds before the wanted picture. The values are tried in this order: a seek may end
# after the wanted picture, by the codec's delay, and the next try must then aim earlier.
_SEEK_BEFORE_S = (0.0, 0.5, 2.0, 8.0)


def pick_frames(video: bytes, numbers: Sequence[int], fps: float = FPS) -> Iterator[np.ndarray]:
    """Yield some frames of a video, numbered as `read_frames` does: uint8 [H, W, 3] RGB.

    Args:
        video: Content of the file.
        numbers: Frame numbers in ascending order.
        fps: Rate at which frames are numbered.

    Raises:
        ValueError: There is no video track, it is damaged before a requested frame, it is too short, or it contains a
            frame without a time.
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
    """Yield the pictures that are nearest in time to n / fps, for each number n."""
    stream.thread_count = 1
    start_s = origin_s(container)
    # Duration of a frame for which the file gives none.
    usual_s = float(1 / stream.average_rate) if stream.average_rate else 1 / fps
    frames: Iterator[VideoFrame] = iter(())
    converter = PictureConverter(stream)
    current: VideoFrame | None = None
    following: VideoFrame | None = None
    for n in numbers:
        due_s = start_s + n / fps
        if current is None or due_s - _time(current) > _MAX_DECODE_S:
            frames = decode_from(container, stream, due_s)
            current, following = next(frames, None), next(frames, None)
            if current is None:
                raise ValueError("the video track is empty")
        while following is not None and due_s >= (_time(current) + _time(following)) / 2:
            current, following = following, next(frames, None)
        # The current picture is the last one.
        if following is None:
            end_s = _time(current) - start_s + (length_s(current) or usual_s)
            count = max(round(end_s * fps), 1)
            if n >= count:
                raise ValueError(f"ends after {count} frames, frame {n} was requested")
        yield converter(current)


def decode_from(container: InputContainer, stream: VideoStream, due_s: float) -> Iterator[VideoFrame]:
    """Yield the frames from a keyframe no later than `due_s`, or from the beginning if no seek finds such a keyframe.

    Args:
        container: The open file.
        stream: Its video stream.
        due_s: Time in seconds on the file's own clock.
    """
    assert stream.time_base is not None
    begin_s = float((stream.start_time or 0) * stream.time_base)
    for before_s in _SEEK_BEFORE_S:
        at_s = due_s - before_s
        if at_s <= begin_s:
            break
        container.seek(round(at_s / float(stream.time_base)), stream=stream)
        # Frames before the keyframe depend on frames that the seek has skipped.
        frames = dropwhile(lambda frame: not frame.key_frame, container.decode(stream))
        first = next(frames, None)
        if first is not None and _time(first) <= due_s + 1e-6:
            return chain([first], frames)
    container.seek(stream.start_time or 0, stream=stream)
    return iter(container.decode(stream))


def _time(frame: VideoFrame) -> float:
    if frame.time is None:
        raise ValueError("contains a frame without a time")
    return frame.time
