"""Make videos: decode a request's files, and generate and encode the frames."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np

from xactor.decoding import FaceCrop
from xactor.media import FragmentedVideo, LiveSound, Sound
from xactor.provenance import ai_generated
from xactor_serving.arguments import Limits
from xactor_serving.decoder import Decoder
from xactor_serving.errors import ServiceError, ending
from xactor_serving.generation import Generation, SoundBuffer
from xactor_serving.metrics import metrics
from xactor_serving.places import Places
from xactor_serving.replica_messages import MotionFacts, PortraitJob, RenderFacts
from xactor_serving.replicas import Replicas
from xactor_serving.video_options import VideoOptions

_DRAIN_POLL_S = 0.1


class Videos:
    """Make the videos of one ingress replica.

    Args:
        replicas: Object that calls the replicas of both models.
        limits: Limits of this ingress replica.
    """

    def __init__(self, replicas: Replicas, limits: Limits):
        self.limits = limits
        self._replicas = replicas
        self._decoder = Decoder(processes=limits.decode_processes, timeout_s=limits.decode_timeout_s)
        self.places = Places(limits)
        self._facts: tuple[MotionFacts, RenderFacts] | None = None
        self._checking: asyncio.Future[None] | None = None

    async def facts(self) -> tuple[MotionFacts, RenderFacts]:
        """Return the descriptions of both models. They are cached: new weights come with new ingress replicas."""
        self._facts = self._facts or await self._replicas.facts()
        return self._facts

    async def check(self) -> None:
        """Raise an error if a request would fail: the service ends, files cannot be decoded, or a model is gone."""
        if self.places.closed:
            raise ending()
        self._decoder.check()
        # Probes that come at the same time share one check.
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(self._replicas.check())
        await asyncio.shield(self._checking)

    async def drain(self) -> None:
        """Refuse new videos and wait until those in progress are finished."""
        self.places.closed = True
        while self.places.videos:
            await asyncio.sleep(_DRAIN_POLL_S)

    async def sound(self, audio: Path, track: Path) -> np.ndarray:
        """Return the samples of an audio file: float32 [N], mono, 16 kHz. Write `track`, see `DecodingPool.sound`.

        Raises:
            ServiceError: The file cannot be decoded, or is too short or too long.
        """
        return await self._decoder.sound(audio, track=track, max_seconds=self.limits.max_seconds)

    async def face(self, image: bytes, options: VideoOptions) -> FaceCrop:
        """Return the face of a picture.

        Raises:
            ServiceError: The picture cannot be decoded, or has no face.
        """
        _, render = await self.facts()
        return await self._decoder.face(image, size=render.image_size, paste_back=options.paste_back)

    async def fragments(
        self,
        face: asyncio.Future[FaceCrop],
        sound: SoundBuffer,
        track: Sound | LiveSound,
        options: VideoOptions,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a fragmented mp4. No piece is empty.

        Args:
            face: The portrait's face. The motion does not wait for it.
            sound: The sound that the motion follows.
            track: The same sound, for the video's audio track.
            options: Options of the video.

        Raises:
            ServiceError: The replicas failed or were too slow.
        """
        begun, frames_made = time.monotonic(), 0
        # While the motion is generated, a replica computes the portrait's reference (the features that the renderer
        # copies from it), and the video file is opened.
        portrait = asyncio.ensure_future(self._portrait(face))
        preparing = asyncio.ensure_future(self._prepare(portrait))
        opening = asyncio.ensure_future(asyncio.to_thread(FragmentedVideo, track, metadata=ai_generated()))
        try:
            facts, render = await self.facts()
            sampling, rendering = options.configs(render.recommended)
            generation = Generation(
                portrait=lambda: portrait,
                sound=sound,
                seed=options.seed,
                sampling=sampling,
                rendering=rendering,
                facts=facts,
                make_chunk=self._replicas.chunk,
                make_window=self._replicas.window,
            )
            async with asyncio.timeout(self.limits.video_timeout_s), aclosing(generation.frames()) as pieces:
                async for frames in pieces:
                    frames_made += len(frames)
                    unencoded = iter(frames)
                    video = await opening
                    while data := await asyncio.to_thread(self._encode, video, await face, unencoded):
                        yield data
            yield await asyncio.to_thread((await opening).end)
        finally:
            tasks = (preparing, opening, portrait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        metrics().video_fps.observe(frames_made / (time.monotonic() - begun))

    @staticmethod
    async def _portrait(face: asyncio.Future[FaceCrop]) -> PortraitJob:
        return PortraitJob.of((await face).square)

    async def _prepare(self, portrait: asyncio.Future[PortraitJob]) -> None:
        # Ignore an error here, because rendering the first window raises the same error.
        with contextlib.suppress(ServiceError):
            await self._replicas.prepare(await portrait)

    @staticmethod
    def _encode(video: FragmentedVideo, face: FaceCrop, frames: Iterator[np.ndarray]) -> bytes:
        """Encode frames until they complete a fragment. Return its bytes, or b"" if the frames run out before that."""
        for frame in frames:
            # `face.picture` is empty unless the frame is to be pasted back into the whole portrait.
            picture = face.box.paste(face.picture, frame) if len(face.picture) else frame
            if data := video.add(picture):
                return data
        return b""

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()
