"""From a request's files to fragments of video: decoded, performed, encoded; and how many of it at a time."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xactor.decoding import Face
from xactor.media import FragmentedVideo, LiveSound, Sound
from xactor.provenance import ai_generated
from xactor_serving.decoding import Decoder
from xactor_serving.errors import ServiceError, full, too_many
from xactor_serving.metrics import metrics
from xactor_serving.options import VideoOptions
from xactor_serving.performance import HeardSound, Performance
from xactor_serving.replicas import Replicas
from xactor_serving.work import MotionFacts, PortraitJob, RenderFacts


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one ingress replica allows.

    Attributes:
        max_videos: in the making at a time. max_videos_per_key: of one key.
        max_upload_bytes, upload_s: of a request's body, and until it has arrived.
        max_seconds: of sound. decode_s: for one of a request's files. decoders: processes that decode.
        video_s: for a whole video. silence_s: on a socket, from one message to the next.
    """

    max_videos: int = 16
    max_videos_per_key: int = 8
    max_upload_bytes: int = 256 * 2**20
    upload_s: float = 120
    max_seconds: float = 3600
    decode_s: float = 60
    decoders: int = 2
    video_s: float = 4 * 3600
    silence_s: float = 30


class Videos:
    """Makes videos with the replicas there are."""

    def __init__(self, replicas: Replicas, limits: Limits):
        self.limits = limits
        self._replicas = replicas
        self._decoder = Decoder(processes=limits.decoders, timeout_s=limits.decode_s)
        self._open: Counter[str] = Counter()  # videos in the making, by key
        self._ending = False
        self._facts: tuple[MotionFacts, RenderFacts] | None = None

    async def facts(self) -> tuple[MotionFacts, RenderFacts]:
        """What both models say of themselves; weights that say otherwise come with a new ingress."""
        self._facts = self._facts or await self._replicas.facts()
        return self._facts

    async def ask(self) -> None:
        """Has both models answer. Raises what keeps them from it."""
        await self._replicas.facts()

    @contextlib.contextmanager
    def place(self, key: str) -> Iterator[None]:
        """A place among the videos in the making. ServiceError: there is none."""
        if self._ending:
            raise ServiceError(503, "not_ready", "the service is ending", retry_after_s=5)
        if self._open[key] >= self.limits.max_videos_per_key:
            raise too_many(f"a client may have {self.limits.max_videos_per_key} videos made at a time")
        if self._open.total() >= self.limits.max_videos:
            raise full(f"{self.limits.max_videos} videos are being made, no more can be")
        self._open[key] += 1
        metrics().open.set(self._open.total())
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
            metrics().open.set(self._open.total())

    async def drain(self) -> None:
        """Refuses new videos, and waits for those in the making."""
        self._ending = True
        while self._open:
            await asyncio.sleep(0.1)

    async def sound(self, audio: Path) -> np.ndarray:
        """Float32 [N], mono, 16 kHz. ServiceError: it cannot be decoded, or is too short or too long."""
        return await self._decoder.sound(audio, max_seconds=self.limits.max_seconds)

    async def face(self, image: bytes, options: VideoOptions) -> Face:
        """ServiceError: what cannot be decoded, or has no face."""
        _, render = await self.facts()
        return await self._decoder.face(image, size=render.image_size, paste_back=options.paste_back)

    async def fragments(
        self,
        face: asyncio.Future[Face],
        sound: HeardSound,
        track: Sound | LiveSound,
        options: VideoOptions,
    ) -> AsyncGenerator[bytes, None]:
        """Pieces of an mp4, none of them empty.

        Args:
            face: need not be found yet; the motion does not depend on it.
            sound: what the motion follows. track: the same, as it is heard in the video.

        Raises:
            ServiceError: replicas that fail, or are too slow.
        """
        begun, count = time.monotonic(), 0
        portrait = asyncio.ensure_future(self._portrait(face))
        # Both beside the motion.
        preparing = asyncio.ensure_future(self._prepare(portrait))
        opening = asyncio.ensure_future(asyncio.to_thread(FragmentedVideo, track, metadata=ai_generated()))
        try:
            sampling, rendering = options.configs()
            facts, _ = await self.facts()
            performance = Performance(
                portrait=lambda: portrait,
                sound=sound,
                seed=options.seed,
                sampling=sampling,
                rendering=rendering,
                facts=facts,
                make_chunk=self._replicas.chunk,
                make_window=self._replicas.window,
            )
            async with asyncio.timeout(self.limits.video_s), aclosing(performance.frames()) as pieces:
                async for frames in pieces:
                    count += len(frames)
                    waiting = iter(frames)
                    video = await opening
                    while data := await asyncio.to_thread(self._encode, video, await face, waiting):
                        yield data
            yield await asyncio.to_thread((await opening).end)
        finally:
            beside = (preparing, opening, portrait)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        metrics().rate.observe(count / (time.monotonic() - begun))

    @staticmethod
    async def _portrait(face: asyncio.Future[Face]) -> PortraitJob:
        return PortraitJob.of((await face).square)

    async def _prepare(self, portrait: asyncio.Future[PortraitJob]) -> None:
        with contextlib.suppress(ServiceError):  # the first window says what is wrong
            await self._replicas.prepare(await portrait)

    @staticmethod
    def _encode(video: FragmentedVideo, face: Face, frames: Iterator[np.ndarray]) -> bytes:
        """The next fragment that the frames complete; empty at their end."""
        for frame in frames:
            if data := video.add(face.box.paste(face.picture, frame) if len(face.picture) else frame):
                return data
        return b""

    def close(self) -> None:
        self._decoder.close()


def counted(error: ServiceError) -> ServiceError:
    """The error, in the metrics."""
    metrics().errors.inc(tags={"code": error.code})
    return error
