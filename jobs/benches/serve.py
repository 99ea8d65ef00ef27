"""Measure the service: the time that it adds to the pipeline, and its throughput past saturation."""

import asyncio
import contextlib
import io
import threading
import time
import wave
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from xactor_serving.replica_messages import ChunkJob, MotionFacts, PortraitJob, RenderFacts, WindowJob
from xactor.rates import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from xactor.media import FragmentedVideo
from xactor.motion import SamplingConfig
from xactor.render import RenderConfig

TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Load:
    """Hold the request that is repeated."""

    image: bytes
    """The portrait's file."""
    audio: bytes
    """The sound's file."""
    seconds: float
    """Length of the sound, in seconds."""
    fields: dict[str, str]
    """The other form fields."""

    def of_another(self, number: int) -> "Load":
        """Return the same request with a new portrait for the service, brighter by less than anyone sees."""
        picture = np.asarray(Image.open(io.BytesIO(self.image)).convert("RGB")).astype(int)
        brighter = (picture + np.array([number % 8, number // 8 % 8, number // 64])).clip(0, 255)
        portrait = io.BytesIO()
        Image.fromarray(brighter.astype(np.uint8)).save(portrait, "PNG")
        return replace(self, image=portrait.getvalue())

    def form(self) -> aiohttp.FormData:
        form = aiohttp.FormData()
        form.add_field("image", self.image, filename="face.png")
        form.add_field("audio", self.audio, filename="speech.wav")
        for name, value in self.fields.items():
            form.add_field(name, value)
        return form


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Hold the times of one request's answer."""

    status: int
    """HTTP status; 0 if the connection broke."""
    first_s: float = 0.0
    """Seconds from the request to its first bytes."""
    last_s: float = 0.0
    """Seconds from the request to its last bytes."""
    late: int = 0
    """Fragments that came too late for a viewer who starts with the first one."""
    fragments: int = 0
    """All fragments."""


def wav(samples: np.ndarray) -> bytes:
    """Return mono float32 samples [N] in -1..1 at 16 kHz as a WAV file of 16 bits."""
    speech = io.BytesIO()
    with wave.open(speech, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return speech.getvalue()


async def ask(session: aiohttp.ClientSession, url: str, load: Load) -> Answer:
    """Send one request and time its answer."""
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/videos", data=load.form()) as answer:
            if answer.status != 200:
                await answer.read()
                return Answer(status=answer.status)
            arrivals = [time.perf_counter() - begun async for _ in answer.content.iter_any()]
    except (aiohttp.ClientError, TimeoutError):
        return Answer(status=0)
    # Fragments have the same length: a viewer needs the n-th one n lengths after the first.
    each = load.seconds / len(arrivals)
    late = sum(at > arrivals[0] + number * each for number, at in enumerate(arrivals))
    return Answer(status=200, first_s=arrivals[0], last_s=arrivals[-1], late=late, fragments=len(arrivals))


async def _all(url: str, load: Load, starts_s: list[float]) -> list[Answer]:
    """Send requests at the given times, whether or not earlier ones are answered: an open loop."""

    async def at(session: aiohttp.ClientSession, start_s: float) -> Answer:
        await asyncio.sleep(start_s)
        return await ask(session, url, load)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return list(await asyncio.gather(*(at(session, start_s) for start_s in starts_s)))


def first_fragments(url: str, load: Load, *, requests: int) -> list[float]:
    """Measure the seconds to the first fragment, one request after another."""

    async def one_by_one() -> list[float]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            answers = [await ask(session, url, load) for _ in range(requests)]
        if bad := [answer.status for answer in answers if answer.status != 200]:
            raise RuntimeError(f"{len(bad)} of {requests} requests failed, with status {bad[0]}")
        return [answer.first_s for answer in answers]

    return asyncio.run(one_by_one())


def under_load(url: str, load: Load, *, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests evenly at `rate` a second for `seconds`, and measure their answers."""
    starts = np.arange(max(round(rate * seconds), 1)) / rate
    begun = time.perf_counter()
    answers = asyncio.run(_all(url, load, starts.tolist()))
    took_s = time.perf_counter() - begun
    made = [answer for answer in answers if answer.status == 200]
    firsts = [answer.first_s for answer in made] or [float("nan")]
    statuses = sorted({answer.status for answer in answers})
    return {
        "rate": rate,
        "requests": len(answers),
        "statuses": {status: sum(o.status == status for o in answers) for status in statuses},
        "videos_per_s": len(made) / took_s,
        "frames_per_s": len(made) * load.seconds * FPS / took_s,
        "first_p50_s": float(np.percentile(firsts, 50)),
        "first_p95_s": float(np.percentile(firsts, 95)),
        "fragments_on_time": 1 - sum(o.late for o in made) / max(sum(o.fragments for o in made), 1),
    }


def held_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the lowest throughput past its peak, and the statuses other than 200 and a refusal (429, 503)."""
    peak = max(range(len(rows)), key=lambda at: rows[at]["frames_per_s"])
    statuses = {status for row in rows for status in row["statuses"]}
    return {
        "peak_frames_per_s": rows[peak]["frames_per_s"],
        "min_past_it_over_peak": min(row["frames_per_s"] for row in rows[peak:]) / rows[peak]["frames_per_s"],
        "other_statuses": sorted(statuses - {200, 429, 503}),
    }


def memory_under_load(url: str, load: Load, *, rate: float, seconds: float, part_s: float) -> dict[str, Any]:
    """Send requests as `under_load` does and watch the memory of all processes that this one has started.

    Returns:
        The row of `under_load`, with the median memory in MiB in the second and in the last part of `part_s` seconds.
    """
    seen: list[tuple[float, float]] = []
    begun, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            seen.append((time.monotonic() - begun, _children_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        row = under_load(url, load, rate=rate, seconds=seconds)
    finally:
        ended.set()
        watcher.join()
    # The first part warms caches and pools. Times after the last request are not under load.
    early = median(mib for at, mib in seen if part_s <= at < 2 * part_s)
    late = median(mib for at, mib in seen if seconds - part_s <= at < seconds)
    return {**row, "seconds": seconds, "early_mib": early, "late_mib": late, "late_over_early": late / early}


def _children_mib() -> float:
    """Return the resident memory of all descendants, an upper bound: shared memory counts once a process."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def bare_first_fragment(pipeline, load: Load, folder: Path) -> float:
    """Do the same work in this process, without a service; return the seconds from the files to the first fragment."""
    audio = folder / "speech.wav"
    audio.write_bytes(load.audio)
    motion = SamplingConfig(steps=int(load.fields["motion_steps"]))
    render = RenderConfig(steps=int(load.fields["render_steps"]), cfg=float(load.fields["render_cfg"]))
    pipeline.set_progress_bar_config(disable=True)
    begun = time.perf_counter()
    animation = pipeline(io.BytesIO(load.image).getvalue(), audio, motion=motion, render=render)
    video = FragmentedVideo(animation.sound)
    for frame in animation.frames:
        if video.add(frame):
            break
    return time.perf_counter() - begun


# --- a graph of the same deployments that does nothing ------------------------------------------------------------


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class EmptyMotion:
    def __init__(self, facts: MotionFacts):
        self._facts = facts

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        yield np.zeros((self._facts.chunk_frames, self._facts.latent_dim), np.float32)


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class EmptyRender:
    def __init__(self, facts: RenderFacts):
        self._facts = facts

    async def window(self, job: WindowJob) -> np.ndarray:
        size = self._facts.image_size
        return np.zeros((len(job.z), size, size, 3), np.uint8)


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
class EmptyIngress:
    """Take the same form, request the chunks and windows of a first fragment from empty deployments, and answer."""

    def __init__(self, motion: DeploymentHandle, render: DeploymentHandle, facts: MotionFacts, size: int):
        self._motion, self._render, self._facts, self._size = motion, render, facts, size

    async def __call__(self, request: Request) -> Response:
        async with request.form() as form:
            for name in ("image", "audio"):
                await form[name].read()  # pyright: ignore
        facts, config = self._facts, RenderConfig(steps=1, cfg=1)
        past = np.zeros((0, facts.latent_dim), np.float32)
        for first in range(0, config.window_frames, facts.chunk_frames):
            job = ChunkJob(
                seed=0,
                sampling=SamplingConfig(),
                first_frame=first,
                past=past,
                samples=np.zeros(facts.windows.frames * SAMPLES_PER_FRAME, np.float32),
                samples_from=0,
                known_frames=first + facts.chunk_frames,
                ended=False,
                buffered_frames=0,
            )
            call: Any = self._motion.options(stream=True).chunk.remote(job)
            async for z in call:
                past = np.concatenate([past, z])
        window = WindowJob(
            portrait=PortraitJob.of(np.zeros((self._size, self._size, 3), np.uint8)),
            z=past[: config.window_frames],
            origin=past[0],
            seed=0,
            first_frame=0,
            config=config,
        )
        frames = await self._render.window.remote(window)
        return Response(frames[:1].tobytes(), media_type="video/mp4")


def empty_graph(motion: MotionFacts, render: RenderFacts) -> Application:
    return EmptyIngress.bind(EmptyMotion.bind(motion), EmptyRender.bind(render), motion, render.image_size)


def added(
    url: str, empty_url: str, pipeline, load: Load, folder: Path, *, rounds: int, first: int = 0
) -> dict[str, float]:
    """Measure the time that the service adds to the pipeline's first fragment, and the time of an empty graph.

    The three are measured in turn, because the machine's speed drifts; the added time is the median of the rounds'
    differences. Every round has a portrait of its own, from number `first` on: the service caches references.
    """
    served, bare, empty = [], [], []
    for number in range(first, first + rounds):
        new = load.of_another(number)
        served += first_fragments(url, new, requests=1)
        bare.append(bare_first_fragment(pipeline, new, folder))
        empty += first_fragments(empty_url, new, requests=1)
    extra = median(one - other for one, other in zip(served, bare, strict=True))
    return {
        "served_s": median(served),
        "bare_s": median(bare),
        "empty_graph_s": median(empty),
        "added_s": extra,
        "added_over_empty_graph": extra / median(empty),
    }
