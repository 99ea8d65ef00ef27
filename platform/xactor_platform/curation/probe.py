"""Check by a video's header and first picture whether the video can be decoded and is within the bounds."""

from collections.abc import Callable, Iterable
from itertools import islice

from av.error import FFmpegError

from xactor.media.clock import duration_s
from xactor.media.container import open_container, video_stream
from xactor.media.span import read_span
from xactor_platform.bulk.message import Message
from xactor_platform.curation.curation_stage import CurationStage, Unusable
from xactor_platform.curation.messages import Facts, Probed, Video
from xactor_platform.curation.video_files import open_video, size_of
from xactor_platform.curation.video_progress import VideoProgress


class Probe(CurationStage):
    """Probe videos. A video that an earlier run refused is not examined again."""

    name = "probe"

    @staticmethod
    def make(*, max_input_bytes: int, max_s: float, max_pixels: int) -> Callable[[Video], list[Probed]]:
        def probe(video: Video) -> list[Probed]:
            facts = read_facts(video.uri, max_input_bytes=max_input_bytes, max_s=max_s, max_pixels=max_pixels)
            return [Probed(video=video, facts=facts)]

        return probe

    def work(self, message: Video) -> Iterable[Message]:
        earlier = VideoProgress(self._output, message.key).refused()
        return [earlier] if earlier else super().work(message)


def read_facts(uri: str, *, max_input_bytes: int, max_s: float, max_pixels: int) -> Facts:
    """Return the size, the frame rate, the rotation and the length of a video.

    Args:
        uri: path or URI of the file.
        max_input_bytes: maximum size of the file in bytes.
        max_s: maximum length in seconds.
        max_pixels: maximum number of pixels in a frame.

    Raises:
        Unusable: the reason is `too_large`, `too_long`, `no_picture` or `no_sound`.
        ValueError: the file cannot be decoded.
    """
    size = size_of(uri)
    if size == 0:
        raise ValueError("the file is empty")
    if size > max_input_bytes:
        raise Unusable(
            "too_large", f"{size} bytes are more than {max_input_bytes}, the bound (max_input_bytes)"
        )
    with open_video(uri) as source:
        with open_container(source) as container:
            if not container.streams.video:
                raise Unusable("no_picture", "no video track")
            stream = video_stream(container, uri)
            width, height = stream.width, stream.height
            if width * height > max_pixels:
                raise Unusable(
                    "too_large",
                    f"{width}x{height} px are more than {max_pixels}, the bound of a frame (max_pixels)",
                )
            seconds = duration_s(container, uri, max_s)
            if seconds > max_s:
                raise Unusable("too_long", f"{seconds:.0f} s are more than {max_s:.0f}, the bound (max_s)")
            if not container.streams.audio:
                raise Unusable("no_sound", "no audio track")
        with open_container(source) as container:
            stream = video_stream(container, uri)
            rate = float(stream.average_rate or 0)
            try:
                rotation = next((round(frame.rotation) for frame in container.decode(stream)), None)
            except FFmpegError as error:
                raise ValueError(f"the first picture cannot be decoded ({error.strerror})") from error
        if rotation is None:
            raise Unusable("no_picture", "the video track is empty")
        # `read_span` gives the picture as players show it: upright, with square pixels. Later stages measure faces in
        # such pictures, so `Facts` holds the size of this picture.
        first = next(islice(read_span(source, 0, 1), 1), None)
    if first is None:
        raise Unusable("no_picture", "the video track is empty")
    height, width = first.shape[:2]
    return Facts(width=width, height=height, fps=rate, rotation=rotation, seconds=seconds)
