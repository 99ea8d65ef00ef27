"""A performance by replicas that come and go: here the engine and the renderer themselves, without Ray."""

import asyncio
import threading
from contextlib import aclosing

import numpy as np
import pytest
import torch
from client import speech
from pipelines import small_pipeline

from xactor.decoding import Face
from xactor.faces import CropBox
from xactor.media import LiveSound
from xactor.motion import MotionEngine, SamplingConfig, stream_motion
from xactor.render import RenderConfig
from xactor_serving.errors import ServiceError
from xactor_serving.motion import EngineThread, Motion
from xactor_serving.options import VideoOptions
from xactor_serving.performance import HeardSound, Performance
from xactor_serving.render import window_of
from xactor_serving.replicas import Replicas
from xactor_serving.videos import Limits, Videos
from xactor_serving.work import ChunkJob, MotionFacts, PortraitJob, RenderFacts, WindowJob

SAMPLING, RENDERING = SamplingConfig(steps=3), RenderConfig(steps=1, cfg=1, window_frames=8, overlap_frames=2)


class Parts:
    """A pipeline's parts as replicas, and what was asked of them."""

    def __init__(self):
        self.pipeline = small_pipeline()
        self.renderer = self.pipeline.renderer
        self.engine = MotionEngine(self.pipeline.motion, max_streams=4, max_batch=4)
        self.thread = EngineThread(self.engine, self.pipeline.audio_encoder)
        self.windows: list[int] = []
        config = self.pipeline.motion.config
        self.facts = MotionFacts(
            latent_dim=config.latent_dim,
            chunk_frames=config.chunk_frames,
            history_frames=config.history_frames,
            audio_window=config.audio_window,
            windows=self.pipeline.audio_encoder.windows,
        )
        self.square = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        self.reference = self.renderer.reference(self.square)

    async def portrait(self) -> PortraitJob:
        return PortraitJob.of(self.square)

    async def window(self, job: WindowJob) -> np.ndarray:
        self.windows.append(job.first_frame)
        window = window_of(job, self.reference)
        return (await asyncio.to_thread(self.renderer.windows, [window], job.config))[0]

    def performance(self, sound: HeardSound, **changes) -> Performance:
        return Performance(
            **{
                "portrait": self.portrait,
                "sound": sound,
                "seed": 5,
                "sampling": SAMPLING,
                "rendering": RENDERING,
                "facts": self.facts,
                "make_chunk": self.thread.chunk,
                "make_window": self.window,
                **changes,
            }
        )

    def whole(self, samples: np.ndarray) -> np.ndarray:
        """As the pipeline makes it."""
        features = (torch.from_numpy(piece) for piece in self.pipeline.audio_encoder.stream(samples))
        z = stream_motion(self.pipeline.motion, features, seed=5, config=SAMPLING)
        return np.stack(list(self.renderer.render(self.reference, z, seed=5, config=RENDERING)))


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def sound(seconds: float) -> np.ndarray:
    return speech(seconds).astype(np.float32) / 32768


async def collect(performance: Performance) -> np.ndarray:
    async with aclosing(performance.frames()) as frames:
        return np.stack([frame async for some in frames for frame in some])


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """But for sums in another order."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


@pytest.mark.parametrize("seconds", [0.03, 0.3, 1.63])
def test_it_is_the_pipelines_video(parts, seconds):
    samples = sound(seconds)
    made = asyncio.run(collect(parts.performance(HeardSound.whole(samples))))
    assert len(made) == round(len(samples) / 640)
    assert alike(made, parts.whole(samples))


def test_sound_that_comes_while_it_is_spoken_gives_the_same_video(parts):
    samples = sound(1.63)

    async def live() -> np.ndarray:
        heard = HeardSound()

        async def speak() -> None:
            for piece in np.array_split(samples, 40):
                heard.hear(piece)
                await asyncio.sleep(0.002)
            heard.end()

        made, _ = await asyncio.gather(collect(parts.performance(heard)), speak())
        return made

    assert alike(asyncio.run(live()), parts.whole(samples))


def test_a_viewer_who_leaves_frees_the_stream_and_its_windows(parts):
    async def leave() -> None:
        async with aclosing(parts.performance(HeardSound.whole(sound(10))).frames()) as frames:
            async for _ in frames:
                break
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not others
        for _ in range(200):
            if not parts.engine.streams:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the stream is still open")

    parts.windows.clear()
    asyncio.run(leave())
    assert len(parts.windows) < 15  # of 42: they were not all begun


def test_a_viewer_who_is_slow_holds_the_work_back(parts):
    async def watch() -> list[int]:
        async with aclosing(parts.performance(HeardSound.whole(sound(10))).frames()) as frames:
            await anext(frames)
            before = -1
            while len(parts.windows) != before:  # until nothing more is begun
                before = len(parts.windows)
                await asyncio.sleep(0.5)
            return list(parts.windows)

    parts.windows.clear()
    assert len(asyncio.run(watch())) <= 1 + 4 + 1  # shown, waiting in their queue, and for a place in it


def test_the_first_window_waits_for_no_other(parts):
    begun: list[str] = []

    async def window(job: WindowJob) -> np.ndarray:
        begun.append(f"window {job.first_frame}")
        if job.first_frame == 0:
            before = list(begun)
            await asyncio.sleep(0.5)  # time for many chunks
            assert begun == before
        return await parts.window(job)

    async def chunk(job: ChunkJob):
        begun.append(f"chunk {job.first_frame}")
        async for piece in parts.thread.chunk(job):
            yield piece

    async def watch() -> int:
        performance = parts.performance(HeardSound.whole(sound(2)), make_window=window, make_chunk=chunk)
        async with aclosing(performance.frames()) as pieces:
            count = len(await anext(pieces))
            before = list(begun)
            await asyncio.sleep(0.5)  # while the viewer is given them
            assert begun == before
            return count + sum([len(frames) async for frames in pieces])

    assert asyncio.run(watch()) == 50
    assert len(begun) > 8


def test_the_portrait_is_made_ready_while_it_moves(parts):
    order: list[str] = []
    ready = asyncio.Event()

    class Local(Replicas):
        async def facts(self):
            return parts.facts, RenderFacts(image_size=64, latent_dim=parts.facts.latent_dim)

        async def prepare(self, portrait: PortraitJob) -> None:
            order.append(portrait.name)
            ready.set()

        async def chunk(self, job: ChunkJob):
            await ready.wait()
            async for piece in parts.thread.chunk(job):
                yield piece
            order.append("chunk")

        async def window(self, job: WindowJob) -> np.ndarray:
            order.append(job.portrait.name)
            return await parts.window(job)

    async def make() -> None:
        videos = Videos(Local(None, None, timeout_s=1, patience_s=1), Limits(decoders=1))  # pyright: ignore
        face = asyncio.get_running_loop().create_future()
        square = parts.square
        face.set_result(
            Face(square=square, picture=square[:0], box=CropBox(left=0, top=0, side=64), notes=())
        )
        samples = sound(1)
        options = VideoOptions(motion_steps=3, render_steps=1, render_cfg=1)
        track = LiveSound()
        track.hear(samples)
        try:
            async with asyncio.timeout(60):
                made = videos.fragments(face, HeardSound.whole(samples), track, options)
                async with aclosing(made):
                    assert len(b"".join([data async for data in made])) > 1000
        finally:
            videos.close()

    asyncio.run(make())
    assert order[:2] == [PortraitJob.of(parts.square).name, "chunk"]


def test_what_was_made_before_a_failure_is_shown(parts):
    async def fails(job: ChunkJob):
        if job.first_frame >= 16:
            raise ServiceError(503, "broken", "the motion replicas fail")
        async for piece in parts.thread.chunk(job):
            yield piece

    async def watch() -> int:
        count = 0
        try:
            async for frames in parts.performance(HeardSound.whole(sound(2)), make_chunk=fails).frames():
                count += len(frames)
        except ServiceError:
            return count
        raise AssertionError("it did not fail")

    assert asyncio.run(watch()) == 12  # 16 frames moved: two windows were whole, 0..8 and 6..14


def test_a_bad_chunk_fails_alone(parts):
    async def both():
        good = collect(parts.performance(HeardSound.whole(sound(1))))
        nan = np.full(16_000, np.nan, np.float32)
        bad = collect(parts.performance(HeardSound.whole(nan)))
        return await asyncio.gather(good, bad, return_exceptions=True)

    made, failed = asyncio.run(both())
    assert len(made) == 25
    assert isinstance(failed, ValueError)
    assert parts.thread.alive
    assert parts.thread.busy_s == 0


def test_a_model_that_is_stuck_fails_its_health_check(model, monkeypatch):
    """Serve asks each replica now and then, and replaces one that raises."""
    replica = Motion.func_or_class(model, max_streams=1, max_batch=1, stuck_s=0.2)
    engine, stuck = replica._worker._engine, threading.Event()
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (stuck.wait(30), step())[1])
    config = engine.model.config
    job = ChunkJob(
        seed=0,
        sampling=SAMPLING,
        first_frame=0,
        past=np.zeros((0, config.latent_dim), np.float32),
        samples=sound(0.4),
        samples_from=0,
        known_frames=10,
        ended=True,
        buffered_frames=0,
    )

    async def chunk() -> int:
        made = asyncio.create_task(_frames(replica.chunk(job)))
        async with asyncio.timeout(30):
            while replica._worker.busy_s <= 0.2:
                await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="the motion model has been in one step for"):
            replica.check_health()
        stuck.set()
        return await made

    replica.check_health()
    assert asyncio.run(chunk()) == 10
    replica.check_health()


def test_a_service_that_ends_makes_what_it_has_begun_and_nothing_more():
    async def end() -> None:
        videos = Videos(Replicas(None, None, timeout_s=1, patience_s=1), Limits(decoders=1))  # pyright: ignore
        try:
            with videos.place("a"):
                drained = asyncio.create_task(videos.drain())
                await asyncio.sleep(0.3)
                assert not drained.done()
                with pytest.raises(ServiceError, match="the service is ending") as error, videos.place("b"):
                    pass
                assert (error.value.status, error.value.code) == (503, "not_ready")
            async with asyncio.timeout(5):
                await drained
        finally:
            videos.close()

    asyncio.run(end())


async def _frames(pieces) -> int:
    return sum([len(piece) async for piece in pieces])
