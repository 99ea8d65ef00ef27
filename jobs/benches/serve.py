"""Measure the time that the service adds to the pipeline's first fragment, and the service's throughput under overload.

A fragment is a piece of an mp4 that a player can show before the rest exists. The service sends each fragment as soon
as the fragment is finished.
"""

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

# Maximum time of one request, in seconds.
TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Load:
    """Hold the content of a request, which the measurements send repeatedly."""

    image: bytes
    """The portrait's file."""
    audio: bytes
    """The sound's file."""
    seconds: float
    """Length of the sound, in seconds."""
    fields: dict[str, str]
    """The other form fields: options of the video."""

    def of_another(self, number: int) -> "Load":
        """Return the same request with another portrait, so that the service cannot use its cache.

        The new portrait is the old one, brighter by amounts that nobody sees.

        Args:
            number: Number of the new portrait, from 0 to 511. Each number gives a different portrait.
        """
        picture = np.asarray(Image.open(io.BytesIO(self.image)).convert("RGB")).astype(int)
        # Add the three digits of `number` in base 8 to red, green and blue.
        brighter = (picture + np.array([number % 8, number // 8 % 8, number // 64])).clip(0, 255)
        portrait = io.BytesIO()
        Image.fromarray(brighter.astype(np.uint8)).save(portrait, "PNG")
        return replace(self, image=portrait.getvalue())

    def form(self) -> aiohttp.FormData:
        """Return the request as a new form."""
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
    """Seconds from the request to the first bytes of the answer."""
    last_s: float = 0.0
    """Seconds from the request to the last bytes of the answer."""
    late: int = 0
    """Number of fragments that came too late for a viewer who starts to play when the first fragment arrives."""
    fragments: int = 0
    """Number of fragments of the video."""


def wav(samples: np.ndarray) -> bytes:
    """Return the bytes of a 16-bit WAV file. The samples are float32 [N] in -1..1, mono, 16 kHz."""
    speech = io.BytesIO()
    with wave.open(speech, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return speech.getvalue()


async def ask(session: aiohttp.ClientSession, url: str, load: Load) -> Answer:
    """Send one request to <url>/v1/videos and time its answer. A request that breaks off has status 0."""
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/videos", data=load.form()) as answer:
            if answer.status != 200:
                await answer.read()
                return Answer(status=answer.status)
            arrivals = [time.perf_counter() - begun async for _ in answer.content.iter_any()]
    except (aiohttp.ClientError, TimeoutError):
        return Answer(status=0)
    # All fragments have the same length. A viewer needs fragment n when n such lengths have passed since the first
    # fragment arrived.
    fragment_s = load.seconds / len(arrivals)
    late = sum(arrival > arrivals[0] + number * fragment_s for number, arrival in enumerate(arrivals))
    return Answer(status=200, first_s=arrivals[0], last_s=arrivals[-1], late=late, fragments=len(arrivals))


async def _send_all(url: str, load: Load, starts_s: list[float]) -> list[Answer]:
    """Send requests at the given times, in an open loop: no request waits for the answers to earlier requests.

    Args:
        url: URL of the service.
        load: The request.
        starts_s: Time of each request, in seconds from now.

    Returns:
        The answers to all requests, in their order.
    """

    async def send_at(session: aiohttp.ClientSession, start_s: float) -> Answer:
        await asyncio.sleep(start_s)
        return await ask(session, url, load)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    # A limit of 0 allows any number of connections, so that the client delays no request.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return list(await asyncio.gather(*(send_at(session, start_s) for start_s in starts_s)))


def first_fragments(url: str, load: Load, *, requests: int) -> list[float]:
    """Return the seconds to the first fragment of each request. The requests are sent one after another.

    Raises:
        RuntimeError: A request fails.
    """

    async def one_by_one() -> list[float]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            answers = [await ask(session, url, load) for _ in range(requests)]
        if bad := [answer.status for answer in answers if answer.status != 200]:
            raise RuntimeError(f"{len(bad)} of {requests} requests failed, with status {bad[0]}")
        return [answer.first_s for answer in answers]

    return asyncio.run(one_by_one())


def under_load(url: str, load: Load, *, rate: float, seconds: float) -> dict[str, Any]:
    """Send `rate` requests per second, evenly spaced, for `seconds`, and measure their answers.

    Returns:
        Figures for JSON: the number of answers by HTTP status; the videos and the frames that were finished per second;
        median and 95th percentile of the seconds to the first fragment; and the share of fragments that came on time
        (see `Answer.late`).
    """
    starts_s = np.arange(max(round(rate * seconds), 1)) / rate
    begun = time.perf_counter()
    answers = asyncio.run(_send_all(url, load, starts_s.tolist()))
    took_s = time.perf_counter() - begun
    videos = [answer for answer in answers if answer.status == 200]
    firsts_s = [answer.first_s for answer in videos] or [float("nan")]
    statuses = sorted({answer.status for answer in answers})
    return {
        "rate": rate,
        "requests": len(answers),
        "statuses": {status: sum(answer.status == status for answer in answers) for status in statuses},
        "videos_per_s": len(videos) / took_s,
        "frames_per_s": len(videos) * load.seconds * FPS / took_s,
        "first_p50_s": float(np.percentile(firsts_s, 50)),
        "first_p95_s": float(np.percentile(firsts_s, 95)),
        "fragments_on_time": 1
        - sum(video.late for video in videos) / max(sum(video.fragments for video in videos), 1),
    }


def held_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far the throughput falls when requests arrive faster than at the peak of the throughput.

    Args:
        rows: Results of `under_load`, by rising rate of requests.

    Returns:
        The peak throughput; the lowest throughput at the rate of the peak or at a higher rate, as a fraction of the
        peak; and the HTTP statuses that are neither 200 (success) nor 429 or 503 (refusals).
    """
    peak = max(range(len(rows)), key=lambda index: rows[index]["frames_per_s"])
    statuses = {status for row in rows for status in row["statuses"]}
    return {
        "peak_frames_per_s": rows[peak]["frames_per_s"],
        "min_past_it_over_peak": min(row["frames_per_s"] for row in rows[peak:]) / rows[peak]["frames_per_s"],
        "other_statuses": sorted(statuses - {200, 429, 503}),
    }


def memory_under_load(url: str, load: Load, *, rate: float, seconds: float, part_s: float) -> dict[str, Any]:
    """Send requests as `under_load` does, and measure the memory of all processes that this process has started.

    The time is divided into parts of `part_s` seconds.

    Returns:
        The figures of `under_load`, with the median memory in the second part and in the last part, both in MiB, and
        the ratio of last to second.
    """
    # Seconds since the start, and memory in MiB.
    samples: list[tuple[float, float]] = []
    begun, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            samples.append((time.monotonic() - begun, _children_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        row = under_load(url, load, rate=rate, seconds=seconds)
    finally:
        ended.set()
        watcher.join()
    # Leave out the first part, in which caches and pools fill, and the time after `seconds`, which has no load.
    early = median(mib for at_s, mib in samples if part_s <= at_s < 2 * part_s)
    late = median(mib for at_s, mib in samples if seconds - part_s <= at_s < seconds)
    return {**row, "seconds": seconds, "early_mib": early, "late_mib": late, "late_over_early": late / early}


def _children_mib() -> float:
    """Return the sum of the resident memory of all processes that this process has started, in MiB.

    The sum is an upper bound, because memory that processes share counts once for each of them.
    """
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def bare_first_fragment(pipeline, load: Load, folder: Path) -> float:
    """Animate the portrait in this process, without a service, and return the seconds to the first fragment.

    Args:
        pipeline: The loaded `XActorPipeline`.
        load: The portrait, the sound and the options.
        folder: Folder for the sound's file.
    """
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


# --- the empty graph: the same deployments without models ---------------------------------------------------------


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class EmptyMotion:
    """Replace the motion deployment: return chunks of zeros, without a model."""

    def __init__(self, facts: MotionFacts):
        self._facts = facts

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        yield np.zeros((self._facts.chunk_frames, self._facts.latent_dim), np.float32)


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class EmptyRender:
    """Replace the render deployment: return windows of black frames, without a model."""

    def __init__(self, facts: RenderFacts):
        self._facts = facts

    async def window(self, job: WindowJob) -> np.ndarray:
        size = self._facts.image_size
        return np.zeros((len(job.z), size, size, 3), np.uint8)


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
class EmptyIngress:
    """Replace the ingress: receive the form, and call the empty deployments as often as the first fragment needs.

    The first fragment needs one window of frames. So the motion deployment is called once for each chunk in the first
    window, and the render deployment once.
    """

    def __init__(self, motion: DeploymentHandle, render: DeploymentHandle, facts: MotionFacts, size: int):
        self._motion, self._render, self._facts, self._size = motion, render, facts, size

    async def __call__(self, request: Request) -> Response:
        async with request.form() as form:
            for name in ("image", "audio"):
                await form[name].read()  # pyright: ignore
        facts, config = self._facts, RenderConfig(steps=1, cfg=1)
        past = np.zeros((0, facts.latent_dim), np.float32)
        lead = config.lead_frames
        for first in range(0, lead + config.window_frames, facts.chunk_frames):
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
            z=past[lead : lead + config.window_frames],
            origin=past[0],
            seed=0,
            first_frame=0,
            config=config,
        )
        frames = await self._render.window.remote(window)
        return Response(frames[:1].tobytes(), media_type="video/mp4")


def empty_graph(motion: MotionFacts, render: RenderFacts) -> Application:
    """Return the Serve application without models. Its results have the shapes that the given models' results have."""
    return EmptyIngress.bind(EmptyMotion.bind(motion), EmptyRender.bind(render), motion, render.image_size)


def added(
    url: str, empty_url: str, pipeline, load: Load, folder: Path, *, rounds: int, first: int = 0
) -> dict[str, float]:
    """Measure the time that the service adds to the pipeline's first fragment, and the time of the empty graph.

    Service, pipeline and empty graph are measured in turn, because the machine's speed drifts. Each round uses another
    portrait, because the service caches what it computes from a portrait. The portraits are those of `Load.of_another`
    with the numbers from `first` on.

    Returns:
        The median seconds to the first fragment of the service, of the pipeline (`bare_s`) and of the empty graph;
        `added_s`, the median of the rounds' differences between service and pipeline; and the added time divided by
        that of the empty graph.
    """
    served_s, bare_s, empty_s = [], [], []
    for number in range(first, first + rounds):
        uncached = load.of_another(number)
        served_s += first_fragments(url, uncached, requests=1)
        bare_s.append(bare_first_fragment(pipeline, uncached, folder))
        empty_s += first_fragments(empty_url, uncached, requests=1)
    added_s = median(served - bare for served, bare in zip(served_s, bare_s, strict=True))
    return {
        "served_s": median(served_s),
        "bare_s": median(bare_s),
        "empty_graph_s": median(empty_s),
        "added_s": added_s,
        "added_over_empty_graph": added_s / median(empty_s),
    }
