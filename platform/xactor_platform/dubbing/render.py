"""Render segments of videos.

A segment is a part of a video that one actor renders. A window is a group of successive frames that the renderer
denoises together.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import torch

from xactor.model_folder import RENDERER_COMPONENTS, local_folder
from xactor.render import Blend, Reference, Renderer, Window
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DubStage
from xactor_platform.dubbing.messages import RenderedSegment, Segment
from xactor_platform.dubbing.segments import Span, windows_of_span

# Number of references that an actor keeps. A reference is the features of a portrait that the renderer copies from. The
# segments of one portrait come soon after each other.
_MAX_REFERENCES = 8


class Render(DubStage, Stage):
    """Render segments to frames, several windows in one batch.

    Args:
        model: folder or URI of a pipeline.
        device: cpu or cuda.
        windows: maximum number of windows in a batch.
    """

    name = "render"
    node_group = "render"

    def __init__(self, *, model: str, device: str, windows: int):
        self._renderer = Renderer.from_pretrained(local_folder(model, components=RENDERER_COMPONENTS))
        if device == "cuda":
            self._renderer.to("cuda", torch.bfloat16)
        self._windows = windows
        self._references: OrderedDict[str, Reference] = OrderedDict()

    def work(self, message: Segment) -> Iterator[RenderedSegment]:
        config = message.row.options.rendering()
        windows = self._plan(message)
        blend = Blend(config)
        frames: list[np.ndarray] = []
        # Only windows of equal length can form a batch. The last window may be shorter than the others.
        for _, group in groupby(windows, key=lambda window: len(window.z)):
            same_length = list(group)
            for start in range(0, len(same_length), self._windows):
                for window in self._renderer.windows(same_length[start : start + self._windows], config):
                    frames += blend.add(window)
        frames += blend.rest()
        # The first and the last window also cover frames of the neighbouring segments. Leave these frames out.
        first = windows[0].first_frame
        segment_frames = frames[message.first - first : message.end - first]
        yield RenderedSegment(segment=message, frames=np.stack(segment_frames))

    def _plan(self, segment: Segment) -> list[Window]:
        """Return the windows of a segment in order."""
        config, seed = segment.row.options.rendering(), segment.row.options.seed
        reference = self._reference(segment.square)
        span = Span(
            first=segment.first,
            end=segment.end,
            z_first=segment.z_first,
            z_end=segment.z_first + len(segment.z),
        )
        z, origin = torch.from_numpy(segment.z), torch.from_numpy(segment.origin)
        return [
            Window(
                reference=reference,
                z=z[first - segment.z_first : end - segment.z_first],
                seed=seed,
                first_frame=first,
                origin=origin,
            )
            for first, end in windows_of_span(span, segment.total, config)
        ]

    def _reference(self, square: np.ndarray) -> Reference:
        """Return the reference of a face, uint8 [S, S, 3]. Recently used references are cached."""
        digest = hashlib.sha256(square.tobytes()).hexdigest()
        if digest not in self._references:
            self._references[digest] = self._renderer.reference(square)
            if len(self._references) > _MAX_REFERENCES:
                self._references.popitem(last=False)
        self._references.move_to_end(digest)
        return self._references[digest]
