"""Encode the frames of a segment, a part of a video, into a file.

A later run uses the file and does not make the segment again.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xactor.media import write_video
from xactor.rates import FPS
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DubStage
from xactor_platform.dubbing.messages import RenderedSegment, SegmentFile, segment_file_name
from xactor_platform.storage.location import Location


class Encode(DubStage, Stage):
    """Encode rendered segments without sound. If the row asks for it, first paste each frame into the whole picture.

    Args:
        output: folder or URI of the videos.
    """

    name = "encode"
    node_group = "render"

    def __init__(self, *, output: str):
        self._output = Location.parse(output)

    def work(self, message: RenderedSegment) -> Iterator[SegmentFile]:
        segment = message.segment
        frames: Iterator[np.ndarray] = iter(message.frames)
        if segment.row.options.paste_back:
            frames = (segment.box.paste(segment.picture, frame) for frame in frames)
        with tempfile.TemporaryDirectory(prefix="xactor-dub-") as folder:
            local = Path(folder, segment_file_name(segment.number))
            write_video(local, frames, fps=FPS, samples=np.zeros(0, np.float32))
            with self._output.atomic_write(f"{segment.dub.folder}/{local.name}") as file:
                file.write(local.read_bytes())
        yield SegmentFile(dub=segment.dub, number=segment.number, of=segment.of, made=True)
