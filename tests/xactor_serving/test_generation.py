"""Test the generation of a video with the engine and the renderer themselves, without Ray."""

import asyncio
import threading
import time
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from client import speech
from pipelines import small_pipeline

from xactor.decoding import FaceCrop
from xactor.faces import CropBox
from xactor.media import LiveSound
from xactor.motion import MotionEngine, SamplingConfig, stream_motion
from xactor.options import Recommended
from xactor.render import RenderConfig
from xactor_serving.arguments import Limits
from xactor_serving.errors import ServiceError
from xactor_serving.generation import Generation, SoundBuffer
from xactor_serving.motion_replica import EngineThread, Motion
from xactor_serving.places import Client
from xactor_serving.render_replica import Render, _Task, window_of
from xactor_serving.replica_messages import ChunkJob, MotionFacts, PortraitJob, RenderFacts, WindowJob
from xactor_serving.replicas import Replicas
from xactor_serving.video_options import VideoOptions
from xactor_serving.videos import Videos

SAMPLING, RENDERING = SamplingConfig(steps=3), RenderConfig(steps=1, cfg=1, window_frames=8, overlap_frames=2)


class LocalReplicas:
    """Stand in for the replicas with a pipeline's components, and record the windows that are asked for."""

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

    def generation(self, sound: SoundBuffer, **changes) -> Generation:
        return Generation(
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
        """Return the frames that the pipeline itself makes."""
        lead_frames = RENDERING.lead_frames
        samples = np.pad(samples, (lead_frames * 640, 0))
        features = (torch.from_numpy(piece) for piece in self.pipeline.audio_encoder.stream(samples))
        z = stream_motion(self.pipeline.motion, features, seed=5, config=SAMPLING)
        frames = self.renderer.render(self.reference, z, seed=5, config=RENDERING, lead_frames=lead_frames)
        return np.stack(list(frames))


@pytest.fixture(scope="module")
def local() -> LocalReplicas:
    return LocalReplicas()


def sound(seconds: float) -> np.ndarray:
    return speech(seconds).astype(np.float32) / 32768


async def collect(generation: Generation) -> np.ndarray:
    async with aclosing(generation.frames()) as pieces:
        return np.stack([frame async for frames in pieces for frame in frames])


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether frames are equal up to rounding, which depends on the order of floating-point sums."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.03, 0.3, 1.63])
def test_video_equals_that_of_the_pipeline(local, seconds):
    samples = sound(seconds)
    made = asyncio.run(collect(local.generation(SoundBuffer.whole(samples))))
    assert len(made) == round(len(samples) / 640)
    assert alike(made, local.whole(samples))


def test_streamed_sound_gives_the_same_video(local):
    samples = sound(1.63)

    async def live() -> np.ndarray:
        buffer = SoundBuffer()

        async def speak() -> None:
            for piece in np.array_split(samples, 40):
                buffer.append(piece)
                await asyncio.sleep(0.002)
            buffer.end()

        made, _ = await asyncio.gather(collect(local.generation(buffer)), speak())
        return made

    assert alike(asyncio.run(live()), local.whole(samples))


def test_closing_frees_the_stream_and_its_windows(local):
    async def leave() -> None:
        async with aclosing(local.generation(SoundBuffer.whole(sound(10))).frames()) as frames:
            async for _ in frames:
                break
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not others
        for _ in range(200):
            if not local.engine.streams:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the stream is still open")

    local.windows.clear()
    asyncio.run(leave())
    assert len(local.windows) < 15  # of 42


def test_work_ahead_of_a_slow_viewer_is_bounded(local):
    async def watch() -> list[int]:
        async with aclosing(local.generation(SoundBuffer.whole(sound(10))).frames()) as frames:
            await anext(frames)
            before = -1
            while len(local.windows) != before:  # until no further window starts
                before = len(local.windows)
                await asyncio.sleep(0.5)
            return list(local.windows)

    local.windows.clear()
    assert len(asyncio.run(watch())) <= 1 + 4 + 1  # shown, in the queue, and waiting for space in it


def test_no_other_work_competes_with_the_first_window(local):
    started: list[str] = []

    async def window(job: WindowJob) -> np.ndarray:
        started.append(f"window {job.first_frame}")
        if job.first_frame == 0:
            before = list(started)
            await asyncio.sleep(0.5)  # time for many chunks
            assert started == before
        return await local.window(job)

    async def chunk(job: ChunkJob):
        started.append(f"chunk {job.first_frame}")
        async for piece in local.thread.chunk(job):
            yield piece

    async def watch() -> int:
        generation = local.generation(SoundBuffer.whole(sound(2)), make_window=window, make_chunk=chunk)
        async with aclosing(generation.frames()) as pieces:
            count = len(await anext(pieces))
            before = list(started)
            await asyncio.sleep(0.5)  # while the viewer receives the first frames
            assert started == before
            return count + sum([len(frames) async for frames in pieces])

    assert asyncio.run(watch()) == 50
    assert len(started) > 8


def test_reference_is_computed_during_the_motion(local):
    order: list[str] = []
    ready = asyncio.Event()

    class Local(Replicas):
        async def facts(self):
            render = RenderFacts(image_size=64, latent_dim=local.facts.latent_dim, recommended=Recommended())
            return local.facts, render

        async def prepare(self, portrait: PortraitJob) -> None:
            order.append(portrait.name)
            ready.set()

        async def chunk(self, job: ChunkJob):
            await ready.wait()
            async for piece in local.thread.chunk(job):
                yield piece
            order.append("chunk")

        async def window(self, job: WindowJob) -> np.ndarray:
            order.append(job.portrait.name)
            return await local.window(job)

    async def make() -> None:
        videos = Videos(Local(None, None, call_timeout_s=1, retry_s=1), Limits(decode_processes=1))  # pyright: ignore
        face = asyncio.get_running_loop().create_future()
        square = local.square
        face.set_result(
            FaceCrop(square=square, picture=square[:0], box=CropBox(left=0, top=0, side=64), notes=())
        )
        samples = sound(1)
        options = VideoOptions(motion_steps=3, render_steps=1, render_cfg=1)
        track = LiveSound()
        track.hear(samples)
        try:
            async with asyncio.timeout(60):
                made = videos.fragments(face, SoundBuffer.whole(samples), track, options)
                async with aclosing(made):
                    assert len(b"".join([data async for data in made])) > 1000
        finally:
            videos.close()

    asyncio.run(make())
    assert order[:2] == [PortraitJob.of(local.square).name, "chunk"]


def test_frames_before_a_failure_are_shown(local):
    async def fails(job: ChunkJob):
        if job.first_frame >= 24:
            raise ServiceError(503, "broken", "the motion replicas failed")
        async for piece in local.thread.chunk(job):
            yield piece

    async def watch() -> int:
        count = 0
        try:
            async for frames in local.generation(SoundBuffer.whole(sound(2)), make_chunk=fails).frames():
                count += len(frames)
        except ServiceError:
            return count
        raise AssertionError("the generation did not fail")

    assert (
        asyncio.run(watch()) == 12
    )  # of 16 frames of motion after the lead, windows 0..8 and 6..14 are complete


def test_bad_sound_fails_only_its_own_video(local):
    async def both():
        good = collect(local.generation(SoundBuffer.whole(sound(1))))
        nan = np.full(16_000, np.nan, np.float32)
        bad = collect(local.generation(SoundBuffer.whole(nan)))
        return await asyncio.gather(good, bad, return_exceptions=True)

    made, failed = asyncio.run(both())
    assert len(made) == 25
    assert isinstance(failed, ValueError)
    assert local.thread.alive
    assert local.thread.busy_s == 0


def test_stuck_model_fails_its_health_check(model, monkeypatch):
    """Serve calls check_health periodically and replaces a replica that raises."""
    replica = Motion.func_or_class(model, device="cpu", max_streams=1, max_batch=1, stuck_s=0.2)
    engine, released = replica._worker._engine, threading.Event()
    step = engine.step

    def stuck_step():
        released.wait(30)
        return step()

    monkeypatch.setattr(engine, "step", stuck_step)
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
        released.set()
        return await made

    replica.check_health()
    assert asyncio.run(chunk()) == 10
    replica.check_health()


def test_draining_finishes_open_videos_and_refuses_new_ones():
    async def drain() -> None:
        videos = Videos(Replicas(None, None, call_timeout_s=1, retry_s=1), Limits(decode_processes=1))  # pyright: ignore
        try:
            with (
                videos.places.place(Client("a", True)) as place,
                videos.places.place(Client("b", True)) as late,
            ):
                place.begin_video()
                drained = asyncio.create_task(videos.drain())
                await asyncio.sleep(0.3)
                assert not drained.done()
                with pytest.raises(ServiceError, match="the service is ending") as error:
                    late.begin_video()
                with pytest.raises(ServiceError, match="the service is ending"):
                    videos.places.place(Client("c", True)).__enter__()
                assert (error.value.status, error.value.code) == (503, "not_ready")
            async with asyncio.timeout(5):
                await drained
        finally:
            videos.close()

    asyncio.run(drain())


JOB: Any = SimpleNamespace(
    z=np.zeros((1, 4), np.float32), origin=None, seed=0, first_frame=0, config=RENDERING
)
REFERENCE: Any = None


def test_a_renderer_of_many_steps_is_healthy_and_one_that_is_stuck_is_not(model, monkeypatch):
    """The time of a step counts, not the time of a window, which has as many steps as its request asks for."""
    render = Render.func_or_class(model, device="cpu", max_batch=1, stuck_s=1)
    stuck, released = threading.Event(), threading.Event()

    def windows(windows, config, *, on_step):
        for number in range(40):
            time.sleep(0.05)
            on_step(number, 0, None)
        stuck.set()
        released.wait(30)
        return [np.zeros((1, 8, 8, 3), np.uint8)]

    monkeypatch.setattr(render._renderer, "windows", windows)

    async def watch() -> None:
        working = asyncio.ensure_future(render._in_thread(lambda: render._render([_Task(JOB, REFERENCE)])))
        while not stuck.is_set():
            render.check_health()
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.1)
        with pytest.raises(RuntimeError, match="the renderer has been at one step or one reference for"):
            render.check_health()
        released.set()
        [frames] = await working
        assert frames.shape == (1, 8, 8, 3)
        render.check_health()

    asyncio.run(watch())


@pytest.mark.parametrize("left", ["none", "one", "both"])
def test_a_renderer_stops_within_a_step_when_all_callers_have_left(model, monkeypatch, left):
    render = Render.func_or_class(model, device="cpu", max_batch=2, stuck_s=60)
    tasks, steps = [_Task(JOB, REFERENCE), _Task(JOB, REFERENCE)], []

    def windows(windows, config, *, on_step):
        assert len(windows) == 2
        for number in range(10):
            if number == 3:
                for task in tasks[: ["none", "one", "both"].index(left)]:
                    task.left = True
            steps.append(number)
            on_step(number, 0, None)
        return [np.zeros((1, 8, 8, 3), np.uint8)] * 2

    monkeypatch.setattr(render._renderer, "windows", windows)
    made = render._render(tasks)
    assert len(steps) == (4 if left == "both" else 10)
    assert [frames is None for frames in made] == [left == "both"] * 2
    # Windows whose callers have left before their batch begins are not rendered.
    gone = [_Task(JOB, REFERENCE), _Task(JOB, REFERENCE)]
    gone[0].left = gone[1].left = True
    assert render._render(gone) == [None, None]


async def _frames(pieces) -> int:
    return sum([len(piece) async for piece in pieces])
