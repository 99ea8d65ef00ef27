"""Motion to frames: a segment's windows, several side by side."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import torch

from xactor.render import Blend, Reference, Renderer, Window
from xactor.weights import local_folder
from xactor_platform.dubbing.segments import Span, windows_of_span
from xactor_platform.dubbing.stage import OneByOne
from xactor_platform.dubbing.work import Rendered, Segment

PARTS = ("motion_encoder", "unet", "reference_unet", "vae", "scheduler")
_REFERENCES = 8  # that an actor keeps: a portrait's segments come soon after each other


class Render(OneByOne):
    """
    model: a pipeline's folder or URI. windows: that are denoised together.
    """

    name = "render"
    group = "render"

    def __init__(self, *, model: str, device: str, windows: int):
        self._renderer = Renderer.from_pretrained(local_folder(model, parts=PARTS))
        if device == "cuda":
            self._renderer.to("cuda", torch.bfloat16)
        self._windows = windows
        self._references: OrderedDict[str, Reference] = OrderedDict()

    def work(self, work: Segment) -> Iterator[Rendered]:
        config, seed = work.dub.row.options.rendering(), work.dub.row.options.seed
        reference = self._reference(work.square)
        span = Span(first=work.first, end=work.end, z_first=work.z_first, z_end=work.z_first + len(work.z))
        z, origin = torch.from_numpy(work.z), torch.from_numpy(work.origin)
        planned = [
            Window(
                reference=reference,
                z=z[first - work.z_first : end - work.z_first],
                seed=seed,
                first_frame=first,
                origin=origin,
            )
            for first, end in windows_of_span(span, work.total, config)
        ]
        blend = Blend(config)
        frames: list[np.ndarray] = []
        for _, alike in groupby(planned, key=lambda window: len(window.z)):
            waiting = list(alike)
            for at in range(0, len(waiting), self._windows):
                for window in self._renderer.windows(waiting[at : at + self._windows], config):
                    frames += blend.add(window)
        frames += blend.rest()
        first = planned[0].first_frame
        own = frames[work.first - first : work.end - first]
        yield Rendered(segment=work, frames=np.stack(own), spent=work.spent)

    def _reference(self, square: np.ndarray) -> Reference:
        name = hashlib.sha256(square.tobytes()).hexdigest()
        if name not in self._references:
            self._references[name] = self._renderer.reference(square)
            if len(self._references) > _REFERENCES:
                self._references.popitem(last=False)
        self._references.move_to_end(name)
        return self._references[name]
