"""One performance: sound in, frames out, by whichever replicas there are.

Who asks for the frames holds the performance's whole state: its last latents and its sound. Replicas make single chunks
and windows of it, several windows side by side, and what one that died had begun another does again.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import torch

from xactor.audio import sound_needed
from xactor.motion import SamplingConfig
from xactor.rates import FPS, frame_count
from xactor.render import Blend, Cutter, RenderConfig
from xactor_serving.work import ChunkJob, MotionFacts, PortraitJob, WindowJob

MakeChunk = Callable[[ChunkJob], AsyncGenerator[np.ndarray, None]]
MakeWindow = Callable[[WindowJob], Awaitable[np.ndarray]]


class HeardSound:
    """Sound as it arrives, as far back as it is still needed."""

    def __init__(self):
        self.ended = False
        self._samples = np.zeros(0, np.float32)
        self._first = 0  # sample of `_samples`
        self._news, self._used = asyncio.Event(), asyncio.Event()

    @classmethod
    def whole(cls, samples: np.ndarray) -> "HeardSound":
        sound = cls()
        sound.hear(samples)
        sound.end()
        return sound

    @property
    def heard(self) -> int:
        """Samples in all."""
        return self._first + len(self._samples)

    def hear(self, samples: np.ndarray) -> None:
        """The next of it, float32 [N]."""
        self._samples = np.concatenate([self._samples, samples]) if len(self._samples) else samples
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def room(self, most: int) -> None:
        """Waits until no more than so many samples are kept."""
        while len(self._samples) > most:
            self._used.clear()
            await self._used.wait()

    async def until(self, sample: int) -> None:
        """Waits for so many, or for the end."""
        while self.heard < sample and not self.ended:
            self._news.clear()
            await self._news.wait()

    def between(self, first: int, last: int) -> np.ndarray:
        """Those from `first` on, up to `last` or the end. What was before is forgotten."""
        self._samples, self._first = self._samples[first - self._first :], first
        self._used.set()
        return self._samples[: last - first]


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What is to be performed, and who makes its parts.

    Attributes:
        portrait: asks for it: the windows wait for it, the motion does not.
        windows_ahead: how many windows are rendered or kept at a time.
    """

    portrait: Callable[[], Awaitable[PortraitJob]]
    sound: HeardSound
    seed: int
    sampling: SamplingConfig
    rendering: RenderConfig
    facts: MotionFacts
    make_chunk: MakeChunk
    make_window: MakeWindow
    windows_ahead: int = 4

    async def frames(self) -> AsyncGenerator[list[np.ndarray], None]:
        """uint8 [S, S, 3], in order, 25 a second of sound: at a time those that one more window has completed.
        Whoever stops asking stops the work.
        """
        windows: asyncio.Queue[asyncio.Future[np.ndarray | None]] = asyncio.Queue(self.windows_ahead)
        begun = asyncio.Event()  # the first frames are with the viewer
        motion = asyncio.create_task(self._perform(windows, begun))
        blend = Blend(self.rendering)
        going: asyncio.Future[np.ndarray | None] | None = None
        try:
            while True:
                going = await windows.get()
                if (window := await going) is None:
                    break
                yield list(blend.add(window))
                begun.set()
            yield list(blend.rest())
        finally:
            left: list[asyncio.Future] = [motion, *([going] if going else [])]
            motion.cancel()
            while not windows.empty():
                left.append(windows.get_nowait())
            for work in left:
                work.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _perform(self, windows: asyncio.Queue, begun: asyncio.Event) -> None:
        """Motion, chunk after chunk, cut into windows whose rendering begins at once. The end, or what went wrong,
        comes last: what was made before it is shown.
        """
        cutter = Cutter(self.rendering)
        origin: np.ndarray | None = None  # the first latent
        last: asyncio.Future[np.ndarray | None] = asyncio.get_running_loop().create_future()
        try:
            async with aclosing(self._motion()) as pieces:
                async for piece in pieces:
                    origin = piece[0] if origin is None else origin
                    for window in cutter.add(torch.from_numpy(piece)):
                        await self._begin(windows, *window, origin)
                        await (
                            begun.wait()
                        )  # the viewer waits: nothing else of this video shares a machine with that
            for window in cutter.rest():
                await self._begin(windows, *window, origin)
            last.set_result(None)
        except Exception as error:
            last.set_exception(error)
        await windows.put(last)

    async def _begin(
        self, windows: asyncio.Queue, first_frame: int, z: torch.Tensor, origin: np.ndarray | None
    ) -> None:
        """Has a window rendered as soon as there is room for it."""
        job = WindowJob(
            portrait=await self.portrait(),
            z=z.numpy(),
            origin=origin,
            seed=self.seed,
            first_frame=first_frame,
            config=self.rendering,
        )
        window = asyncio.ensure_future(self.make_window(job))
        try:
            await windows.put(window)
        except asyncio.CancelledError:
            window.cancel()
            raise

    async def _motion(self) -> AsyncGenerator[np.ndarray, None]:
        """Latents float32 [n, D] as they come."""
        facts, sound = self.facts, self.sound
        past = np.zeros((0, facts.latent_dim), np.float32)
        first = 0
        begun: float | None = None
        clock = asyncio.get_running_loop()
        while True:
            known = first + facts.chunk_frames + facts.audio_window
            from_sample, to_sample = sound_needed(self._heard_from(first), known, facts.windows)
            await sound.until(to_sample)
            ended = sound.ended and frame_count(sound.heard) <= known
            if ended:
                known = frame_count(sound.heard)
                if first >= known:
                    return
            played = 0 if begun is None else int((clock.time() - begun) * FPS)
            job = ChunkJob(
                seed=self.seed,
                sampling=self.sampling,
                first_frame=first,
                past=past,
                samples=sound.between(from_sample, to_sample),
                samples_from=from_sample,
                known_frames=known,
                ended=ended,
                buffered_frames=max(first - played, 0),
            )
            async with aclosing(self.make_chunk(job)) as pieces:
                async for z in pieces:
                    past = np.concatenate([past, z])[-facts.history_frames :]
                    first += len(z)
                    begun = begun or clock.time()
                    yield z
            if ended:
                return
            assert first > job.first_frame, "a chunk without frames"

    def _heard_from(self, first_frame: int) -> int:
        return max(first_frame - self.facts.history_frames - self.facts.audio_window, 0)
