"""Sound to motion: many performances at once in one engine, then each cut into segments."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xactor.audio.encoder import load_audio_encoder
from xactor.motion import MotionEngine, MotionStream, MotionTransformer
from xactor.weights import local_folder
from xactor_platform.dubbing.segments import spans
from xactor_platform.dubbing.stage import Stage, added, failure
from xactor_platform.dubbing.work import Failed, Part, Portrayed, Segment, part_name
from xactor_platform.storage.location import Location

MOTION = "motion.npy"
_NO_LIMIT = 10**9


class Perform(Stage):
    """
    model: a pipeline's folder or URI. output: where what is made is kept. streams: that step together.
    segment_windows: of a segment.
    """

    name = "motion"
    group = "motion"

    def __init__(self, *, model: str, output: str, device: str, streams: int, segment_windows: int):
        folder = Path(local_folder(model, parts=("motion", "audio_encoder")))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        transformer = MotionTransformer.from_pretrained(folder / "motion", dtype=dtype).to(device)  # pyright: ignore
        self._encoder = load_audio_encoder(folder / "audio_encoder").to(device)
        self._engine = MotionEngine(
            transformer, max_streams=streams, max_batch=streams, run_ahead_frames=_NO_LIMIT
        )
        self._output, self._segment_windows = Location.parse(output), segment_windows

    def run(self, waiting: list[Portrayed]) -> Iterator[Segment | Part | Failed]:
        """What is made first comes first. The time of a step is shared by those that it moved."""
        going = []
        try:
            for work in waiting:
                begun = time.perf_counter()
                if (z := self._kept(work)) is not None:
                    yield from self._cut(work, z, time.perf_counter() - begun)
                    continue
                going.append(_Performance(work, self._engine, self._encoder))
            while going:
                begun = time.perf_counter()
                moved = self._engine.step()
                for performance in going:
                    performance.listen()
                assert moved or any(performance.ended for performance in going), "no stream can go on"
                took = (time.perf_counter() - begun) / len(going)
                for performance in going:
                    performance.took_s += took
                for performance in [p for p in going if p.ended]:
                    going.remove(performance)
                    yield from self._finish(performance)
        finally:
            for performance in going:
                self._engine.close(performance.stream)

    def _finish(self, performance: "_Performance") -> Iterator[Segment | Part | Failed]:
        work, took = performance.work, performance.took_s
        try:
            if performance.error is not None:
                raise performance.error
            z = torch.cat(performance.made).cpu().numpy()
            yield from self._cut(work, z, took)
        except Exception as error:
            yield failure(work.dub.row, error, added(work.spent, {self.name: took}))

    def _cut(self, work: Portrayed, z: np.ndarray, took_s: float) -> Iterator[Segment | Part]:
        """Its segments; those that an earlier run wrote down come as parts."""
        dub, rendering = work.dub, work.dub.row.options.rendering()
        cut = spans(len(z), self._segment_windows, rendering)
        there = self._there(dub.parts)
        if len(cut) > 1 and MOTION not in there:
            # So that what a later run adds to it is of the same performance.
            with self._output.atomic_write(f"{dub.parts}/{MOTION}") as file:
                buffer = io.BytesIO()
                np.save(buffer, z)
                file.write(buffer.getvalue())
        spent = added(work.spent, {self.name: took_s})
        for number, span in enumerate(cut):
            if part_name(number) in there:
                yield Part(dub=dub, number=number, of=len(cut), made=False, spent=spent)
            else:
                yield Segment(
                    dub=dub,
                    number=number,
                    of=len(cut),
                    first=span.first,
                    end=span.end,
                    total=len(z),
                    z_first=span.z_first,
                    z=z[span.z_first : span.z_end],
                    origin=z[0],
                    square=work.square,
                    picture=work.picture,
                    box=work.box,
                    spent=spent,
                )
            spent = {}  # is told once

    def _kept(self, work: Portrayed) -> np.ndarray | None:
        """The performance that an earlier run wrote down."""
        if MOTION not in self._there(work.dub.parts):
            return None
        with self._output.open(f"{work.dub.parts}/{MOTION}") as file:
            return np.load(io.BytesIO(file.read()), allow_pickle=False)

    def _there(self, folder: str) -> set[str]:
        return {info.base_name for info in self._output.entries(folder)}


class _Performance:
    """One of them, in the engine. Its features are made as they are heard: an hour of them would not fit."""

    def __init__(self, work: Portrayed, engine: MotionEngine, encoder):
        self.work = work
        self.made: list[Tensor] = []
        self.took_s = 0.0
        self.error: Exception | None = None
        options = work.dub.row.options
        self.stream: MotionStream = engine.open(seed=options.seed, config=options.sampling())
        self._features = encoder.stream(work.samples)
        self._engine = engine
        self.listen()

    def listen(self) -> None:
        """Takes what was made, and hears as much as the next step needs."""
        try:
            while self.stream.waits_for_sound and not self.stream.done and self.stream.error is None:
                piece = next(self._features, None)
                self.stream.end() if piece is None else self.stream.hear(torch.from_numpy(piece))
            if len(z := self.stream.take()):
                self.made.append(z)
                self.stream.played = self.stream.made
        except ValueError as error:
            self.error = error
            self._engine.close(self.stream)

    @property
    def ended(self) -> bool:
        return self.error is not None or self.stream.done
