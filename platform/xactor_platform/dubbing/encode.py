"""Frames to a part of the video, written down: what is written is not made again."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xactor.media import write_video
from xactor.rates import FPS
from xactor_platform.dubbing.stage import OneByOne
from xactor_platform.dubbing.work import Part, Rendered, part_name
from xactor_platform.storage.location import Location


class Encode(OneByOne):
    """
    output: under which the parts go.
    """

    name = "encode"
    group = "render"

    def __init__(self, *, output: str):
        self._output = Location.parse(output)

    def work(self, work: Rendered) -> Iterator[Part]:
        segment = work.segment
        frames: Iterator[np.ndarray] = iter(work.frames)
        if segment.dub.row.options.paste_back:
            frames = (segment.box.paste(segment.picture, frame) for frame in frames)
        with tempfile.TemporaryDirectory(prefix="xactor-dub-") as folder:
            local = Path(folder, part_name(segment.number))
            write_video(local, frames, fps=FPS, samples=np.zeros(0, np.float32))
            with self._output.atomic_write(f"{segment.dub.parts}/{local.name}") as file:
                file.write(local.read_bytes())
        yield Part(dub=segment.dub, number=segment.number, of=segment.of, made=True, spent=work.spent)
