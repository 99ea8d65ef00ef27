"""The first look at a file: whether it can be decoded at all, and within bounds, by its header and first picture."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import av
from av.error import FFmpegError

from xactor.media.container import open_container
from xactor.media.span import read_span
from xactor_platform.curation.files import open_video, size_of
from xactor_platform.curation.parts import Parts
from xactor_platform.curation.stage import Bad, Stage
from xactor_platform.curation.work import Facts, Probed, Video


class Probe(Stage):
    """What was refused before is not looked at again."""

    name = "probe"

    @staticmethod
    def make(*, most_bytes: int, most_s: float, most_pixels: int) -> Callable[[Video], list[Probed]]:
        def probe(video: Video) -> list[Probed]:
            facts = look(video.uri, most_bytes=most_bytes, most_s=most_s, most_pixels=most_pixels)
            return [Probed(video=video, facts=facts)]

        return probe

    def run(self, work: Video) -> list[Any]:
        before = Parts(self._output, work.key).refused()
        return [before] if before else super().run(work)


def look(uri: str, *, most_bytes: int, most_s: float, most_pixels: int) -> Facts:
    """Raises Bad: `too_large`, `too_long`, `no_picture`, `no_sound`; ValueError: it cannot be decoded."""
    size = size_of(uri)
    if size == 0:
        raise ValueError("the file is empty")
    if size > most_bytes:
        raise Bad("too_large", f"{size} bytes are more than {most_bytes}, the most that is taken")
    with open_video(uri) as source:
        with open_container(source) as container:
            if not container.streams.video:
                raise Bad("no_picture", "no video track")
            stream = container.streams.video[0]
            width, height = stream.width, stream.height
            if width * height > most_pixels:
                raise Bad(
                    "too_large", f"{width}x{height} px are more than {most_pixels}, the most of a frame"
                )
            seconds = (container.duration or 0) / av.time_base
            if seconds > most_s:
                raise Bad("too_long", f"{seconds:.0f} s are more than {most_s:.0f}, the most that is taken")
            if not container.streams.audio:
                raise Bad("no_sound", "no audio track")
            rate = float(stream.average_rate or 0)
            try:
                rotation = next((round(frame.rotation) for frame in container.decode(stream)), None)
            except FFmpegError as error:
                raise ValueError(f"the first picture cannot be decoded ({error.strerror})") from error
        if rotation is None:
            raise Bad("no_picture", "the video track is empty")
        # As it is seen: upright, and its pixels square.
        first = next(islice(read_span(source, 0, 1), 1), None)
    if first is None:
        raise Bad("no_picture", "the video track is empty")
    height, width = first.shape[:2]
    return Facts(width=width, height=height, fps=rate, rotation=rotation, seconds=seconds)
