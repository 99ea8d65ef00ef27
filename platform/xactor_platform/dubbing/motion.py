"""Sample motion latents from audio, for many videos at once in one engine, and cut each video's latents into segments.

A segment is a part of a video that one actor renders.
"""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xactor.audio.encoder import load_audio_encoder
from xactor.model_folder import MOTION_COMPONENTS, local_folder
from xactor.motion import MotionEngine, MotionStream, load_motion_model
from xactor.rates import SAMPLES_PER_FRAME
from xactor_platform.bulk.message import Message
from xactor_platform.bulk.stage import BatchStage
from xactor_platform.dubbing.dub_stage import DubStage
from xactor_platform.dubbing.messages import Portrait, Segment, SegmentFile, segment_file_name
from xactor_platform.dubbing.segments import spans
from xactor_platform.storage.location import Location

# File with all motion latents of a video that has several segments, including those of the silence that is put before
# the sound (`RenderConfig.lead_frames`). A later run renders missing segments from this file, so that they fit the
# finished ones.
MOTION_FILE = "latents.npy"
# Frames that a stream may run ahead of its player. No player waits in a bulk run.
_NO_LIMIT = 10**9


class Perform(DubStage, BatchStage):
    """Sample motion latents from audio, and cut them into segments.

    Args:
        model: folder or URI of a pipeline.
        output: folder or URI of the videos.
        device: cpu or cuda.
        streams: number of videos that the engine steps together.
        segment_windows: number of windows in a segment.
    """

    name = "motion"
    node_group = "motion"

    def __init__(self, *, model: str, output: str, device: str, streams: int, segment_windows: int):
        folder = Path(local_folder(model, components=(*MOTION_COMPONENTS, "audio_encoder")))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        transformer = load_motion_model(folder, device=device, dtype=dtype)
        self._encoder = load_audio_encoder(folder / "audio_encoder").to(device)
        self._engine = MotionEngine(
            transformer, max_streams=streams, max_batch=streams, run_ahead_frames=_NO_LIMIT
        )
        self._output, self._segment_windows = Location.parse(output), segment_windows

    def run_batch(self, messages: list[Portrait]) -> Iterator[Message]:
        """Sample the motion of several videos together. Yield a video's segments as soon as its motion is complete.

        The seconds of an engine step are divided equally among the videos that are active in it.
        """
        active: list[_Performance] = []
        try:
            for message in messages:
                if MOTION_FILE in self._existing_files(message.dub.folder):
                    yield from self.timed(message, self._saved_segments(message))
                else:
                    active.append(_Performance(message, self._engine, self._encoder))
            while active:
                begun = time.perf_counter()
                moved = self._engine.step()
                for performance in active:
                    performance.exchange()
                assert moved or any(performance.ended for performance in active), "no stream can continue"
                took_s = (time.perf_counter() - begun) / len(active)
                for performance in active:
                    performance.took_s += took_s
                for performance in [p for p in active if p.ended]:
                    active.remove(performance)
                    yield from self.timed(performance.message, self._finish(performance), performance.took_s)
        finally:
            for performance in active:
                performance.stream.close()

    def _finish(self, performance: "_Performance") -> Iterator[Segment | SegmentFile]:
        """Yield the segments of a performance that has ended, or raise its error."""
        if performance.error is not None:
            raise performance.error
        z = torch.cat(performance.made).cpu().numpy()
        yield from self._segments(performance.message, z)

    def _segments(self, message: Portrait, z: np.ndarray) -> Iterator[Segment | SegmentFile]:
        """Yield a video's segments. Segments from an earlier run are yielded as files.

        Args:
            message: The video.
            z: Motion latents, [L + T, D]: first L for the silence that is put before the sound, then T for the video's
                frames.
        """
        dub, rendering = message.dub, message.dub.row.options.rendering()
        video = z[rendering.lead_frames :]  # [T, D]
        segment_spans = spans(len(video), self._segment_windows, rendering)
        count = len(segment_spans)
        existing = self._existing_files(dub.folder)
        if count > 1 and MOTION_FILE not in existing:
            with self._output.atomic_write(f"{dub.folder}/{MOTION_FILE}") as file:
                buffer = io.BytesIO()
                np.save(buffer, z)
                file.write(buffer.getvalue())
        for number, span in enumerate(segment_spans):
            if segment_file_name(number) in existing:
                yield SegmentFile(dub=dub, number=number, of=count, made=False)
                continue
            yield Segment(
                dub=dub,
                number=number,
                of=count,
                first=span.first,
                end=span.end,
                total=len(video),
                z_first=span.z_first,
                z=video[span.z_first : span.z_end],
                origin=z[0],
                square=message.square,
                picture=message.picture,
                box=message.box,
            )

    def _saved_segments(self, message: Portrait) -> Iterator[Segment | SegmentFile]:
        """Yield a video's segments, cut from the latents that an earlier run saved."""
        with self._output.open(f"{message.dub.folder}/{MOTION_FILE}") as file:
            z = np.load(io.BytesIO(file.read()), allow_pickle=False)
        yield from self._segments(message, z)

    def _existing_files(self, folder: str) -> set[str]:
        return {info.base_name for info in self._output.entries(folder)}


class _Performance:
    """Sample one video's motion in the engine.

    Audio features are computed only when the engine needs them, so memory stays small.
    """

    def __init__(self, message: Portrait, engine: MotionEngine, encoder):
        self.message = message
        self.made: list[Tensor] = []
        self.took_s = 0.0
        self.error: Exception | None = None
        options = message.row.options
        self.stream: MotionStream = engine.open(seed=options.seed, config=options.sampling())
        lead = options.rendering().lead_frames * SAMPLES_PER_FRAME
        self._features = encoder.stream(np.pad(message.samples, (lead, 0)))
        self.exchange()

    def exchange(self) -> None:
        """Feed the stream the audio features that its next step needs, and take the latents that it has made."""
        try:
            while self.stream.needs_audio and not self.stream.done and self.stream.error is None:
                features = next(self._features, None)
                if features is None:
                    self.stream.end()
                else:
                    self.stream.feed(torch.from_numpy(features))
            z = self.stream.take()
            if len(z):
                self.made.append(z)
                # Count all frames as played, because nobody plays them. The engine prefers streams with few frames left
                # to play, and now treats all streams alike.
                self.stream.played = self.stream.made
        except ValueError as error:
            self.error = error
            self.stream.close()

    @property
    def ended(self) -> bool:
        return self.error is not None or self.stream.done
