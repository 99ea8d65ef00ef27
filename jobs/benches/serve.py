"""How fast the service is under load: what it adds to the pipeline, and what happens past saturation."""

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
    """One request over and over.

    Attributes:
        seconds: of its sound.
    """

    image: bytes
    audio: bytes
    seconds: float
    fields: dict[str, str]

    def of_another(self, number: int) -> "Load":
        """The same with a portrait that the service has not seen: a little brighter, as nobody sees."""
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
class Outcome:
    """What became of one request.

    Attributes:
        first_s, last_s: until its first and its last bytes. late: fragments that came after a viewer who started with
            the first one needed them. fragments: of it in all.
    """

    status: int
    first_s: float = 0.0
    last_s: float = 0.0
    late: int = 0
    fragments: int = 0


def wav(samples: np.ndarray) -> bytes:
    """Return mono float32 samples [N] in -1..1 at 16 kHz as a WAV file of 16 bits."""
    speech = io.BytesIO()
    with wave.open(speech, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return speech.getvalue()


async def ask(session: aiohttp.ClientSession, url: str, load: Load) -> Outcome:
    """One request. A connection that breaks counts as status 0."""
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/videos", data=load.form()) as answer:
            if answer.status != 200:
                await answer.read()
                return Outcome(status=answer.status)
            arrivals = [time.perf_counter() - begun async for _ in answer.content.iter_any()]
    except (aiohttp.ClientError, TimeoutError):
        return Outcome(status=0)
    # Fragments are alike in length: the n-th is played n of them after the first came.
    each = load.seconds / len(arrivals)
    late = sum(at > arrivals[0] + number * each for number, at in enumerate(arrivals))
    return Outcome(status=200, first_s=arrivals[0], last_s=arrivals[-1], late=late, fragments=len(arrivals))


async def _all(url: str, load: Load, starts_s: list[float]) -> list[Outcome]:
    """Requests that start at those times, whatever became of those before: an open loop."""

    async def at(session: aiohttp.ClientSession, start_s: float) -> Outcome:
        await asyncio.sleep(start_s)
        return await ask(session, url, load)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return list(await asyncio.gather(*(at(session, start_s) for start_s in starts_s)))


def first_fragments(url: str, load: Load, *, requests: int) -> list[float]:
    """Seconds to the first fragment, one request after another."""

    async def one_by_one() -> list[float]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            outcomes = [await ask(session, url, load) for _ in range(requests)]
        if bad := [outcome.status for outcome in outcomes if outcome.status != 200]:
            raise RuntimeError(f"{len(bad)} of {requests} requests failed, with status {bad[0]}")
        return [outcome.first_s for outcome in outcomes]

    return asyncio.run(one_by_one())


def under_load(url: str, load: Load, *, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at a rate of so many a second, evenly, for so long: how they fared."""
    starts = np.arange(max(round(rate * seconds), 1)) / rate
    begun = time.perf_counter()
    outcomes = asyncio.run(_all(url, load, starts.tolist()))
    took_s = time.perf_counter() - begun
    made = [outcome for outcome in outcomes if outcome.status == 200]
    firsts = [outcome.first_s for outcome in made] or [float("nan")]
    statuses = sorted({outcome.status for outcome in outcomes})
    return {
        "rate": rate,
        "requests": len(outcomes),
        "statuses": {status: sum(o.status == status for o in outcomes) for status in statuses},
        "videos_per_s": len(made) / took_s,
        "frames_per_s": len(made) * load.seconds * FPS / took_s,
        "first_p50_s": float(np.percentile(firsts, 50)),
        "first_p95_s": float(np.percentile(firsts, 95)),
        "fragments_on_time": 1 - sum(o.late for o in made) / max(sum(o.fragments for o in made), 1),
    }


def held_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of the throughput past its peak, and of the requests that were too many."""
    peak = max(range(len(rows)), key=lambda at: rows[at]["frames_per_s"])
    statuses = {status for row in rows for status in row["statuses"]}
    return {
        "peak_frames_per_s": rows[peak]["frames_per_s"],
        "least_past_it_over_peak": min(row["frames_per_s"] for row in rows[peak:])
        / rows[peak]["frames_per_s"],
        "other_statuses": sorted(statuses - {200, 429, 503}),
    }


def memory_under_load(url: str, load: Load, *, rate: float, seconds: float, part_s: float) -> dict[str, Any]:
    """The same, and the memory of all that this process has started (Serve's replicas, Ray itself): its median in MiB
    in the second part of so many seconds and in the last one.
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
    # The first part warms caches and pools; what follows the last request is no load.
    early = median(mib for at, mib in seen if part_s <= at < 2 * part_s)
    late = median(mib for at, mib in seen if seconds - part_s <= at < seconds)
    return {**row, "seconds": seconds, "early_mib": early, "late_mib": late, "late_over_early": late / early}


def _children_mib() -> float:
    """Resident, what processes share counted once for each: growth shows, the sum is an upper bound."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def bare_first_fragment(pipeline, load: Load, folder: Path) -> float:
    """The same work in this process, without a service: seconds from the files to the first fragment."""
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
    """Takes the same form, has as many chunks and windows made as a first fragment needs, and answers."""

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
    """What the service adds to the pipeline's time to the first fragment, beside what an empty graph takes.

    By turns, as the machine's speed drifts: what is added is the median of each round's difference. Every round has a
    portrait of its own, from number `first` on, or the service would have its reference already.
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
