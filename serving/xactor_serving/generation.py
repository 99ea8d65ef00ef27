"""Generate one video: sound in, frames out, on any replicas.

The caller holds the video's whole state: its last latents and its sound. Replicas make single chunks and windows of it,
several windows concurrently. Another replica retries work that was lost with one.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from xactor.audio import sound_needed
from xactor.motion import SamplingConfig
from xactor.rates import FPS, frame_count
from xactor.render import Blend, Cutter, RenderConfig
from xactor_serving.replica_messages import ChunkJob, MotionFacts, PortraitJob, WindowJob

MakeChunk = Callable[[ChunkJob], AsyncGenerator[np.ndarray, None]]
MakeWindow = Callable[[WindowJob], Awaitable[np.ndarray]]


class SoundBuffer:
    """Hold sound as it arrives, as far back as the motion still needs it."""

    def __init__(self):
        self.ended = False
        self._samples = np.zeros(0, np.float32)
        # Number of the first of `_samples` in the whole sound.
        self._first = 0
        self._arrived, self._used = asyncio.Event(), asyncio.Event()

    @classmethod
    def whole(cls, samples: np.ndarray) -> "SoundBuffer":
        """Return a buffer of sound that is complete: float32 [N]."""
        sound = cls()
        sound.append(samples)
        sound.end()
        return sound

    @property
    def received(self) -> int:
        """Count the samples that have arrived."""
        return self._first + len(self._samples)

    def append(self, samples: np.ndarray) -> None:
        """Add the next samples, float32 [N]."""
        self._samples = np.concatenate([self._samples, samples]) if len(self._samples) else samples
        self._arrived.set()

    def end(self) -> None:
        """Mark the sound as complete."""
        self.ended = True
        self._arrived.set()

    async def wait_for_space(self, max_samples: int) -> None:
        """Wait until the buffer holds at most `max_samples`."""
        while len(self._samples) > max_samples:
            self._used.clear()
            await self._used.wait()

    async def wait_until(self, sample: int) -> None:
        """Wait until that many samples have arrived, or the sound has ended."""
        while self.received < sample and not self.ended:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self, first: int, last: int) -> np.ndarray:
        """Return the samples from `first` up to `last` or the end. Drop those before `first`."""
        self._samples, self._first = self._samples[first - self._first :], first
        self._used.set()
        return self._samples[: last - first]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generate one video."""

    portrait: Callable[[], Awaitable[PortraitJob]]
    """Returns the portrait. The windows wait for it, the motion does not."""
    sound: SoundBuffer
    """The sound that the motion follows."""
    seed: int
    """Seed of the video."""
    sampling: SamplingConfig
    """Sampling options of the motion."""
    rendering: RenderConfig
    """Rendering options."""
    facts: MotionFacts
    """Description of the motion model."""
    make_chunk: MakeChunk
    """Makes a chunk of motion on some replica."""
    make_window: MakeWindow
    """Renders a window on some replica."""
    windows_ahead: int = 4
    """Windows that are rendered or kept at a time."""

    async def frames(self) -> AsyncGenerator[list[np.ndarray], None]:
        """Yield frames uint8 [S, S, 3] in order, 25 a second of sound; each list is what one more window completed.

        Closing the generator cancels the work.
        """
        windows: asyncio.Queue[asyncio.Future[np.ndarray | None]] = asyncio.Queue(self.windows_ahead)
        # Set once the viewer has the first frames.
        shown = asyncio.Event()
        motion = asyncio.create_task(self._generate(windows, shown))
        blend = Blend(self.rendering)
        current: asyncio.Future[np.ndarray | None] | None = None
        try:
            while True:
                current = await windows.get()
                if (window := await current) is None:
                    break
                yield list(blend.add(window))
                shown.set()
            yield list(blend.rest())
        finally:
            tasks: list[asyncio.Future] = [motion, *([current] if current else [])]
            motion.cancel()
            while not windows.empty():
                tasks.append(windows.get_nowait())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, windows: asyncio.Queue, shown: asyncio.Event) -> None:
        """Generate motion chunk by chunk and start the rendering of each window as soon as it is complete.

        The end, or an error, comes last in the queue: the frames before it are shown.
        """
        cutter = Cutter(self.rendering, np.concatenate)
        # The video's first latent.
        origin: np.ndarray | None = None
        last: asyncio.Future[np.ndarray | None] = asyncio.get_running_loop().create_future()
        try:
            async with aclosing(self._motion()) as pieces:
                async for piece in pieces:
                    origin = piece[0] if origin is None else origin
                    for window in cutter.add(piece):
                        await self._start(windows, *window, origin)
                        # The viewer waits for the first window: no other work of this video competes with it.
                        await shown.wait()
            for window in cutter.rest():
                await self._start(windows, *window, origin)
            last.set_result(None)
        except Exception as error:
            last.set_exception(error)
        await windows.put(last)

    async def _start(
        self, windows: asyncio.Queue, first_frame: int, z: np.ndarray, origin: np.ndarray | None
    ) -> None:
        """Start the rendering of a window, and wait until the queue has space for it."""
        job = WindowJob(
            portrait=await self.portrait(),
            z=z,
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
        """Yield latents float32 [n, D] as they are made."""
        facts, sound = self.facts, self.sound
        past = np.zeros((0, facts.latent_dim), np.float32)
        first = 0
        begun: float | None = None
        clock = asyncio.get_running_loop()
        while True:
            known = first + facts.chunk_frames + facts.audio_window
            from_sample, to_sample = sound_needed(self._first_audio_frame(first), known, facts.windows)
            await sound.wait_until(to_sample)
            ended = sound.ended and frame_count(sound.received) <= known
            if ended:
                known = frame_count(sound.received)
                if first >= known:
                    return
            played = 0 if begun is None else int((clock.time() - begun) * FPS)
            job = ChunkJob(
                seed=self.seed,
                sampling=self.sampling,
                first_frame=first,
                past=past,
                samples=sound.take(from_sample, to_sample),
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

    def _first_audio_frame(self, first_frame: int) -> int:
        """Return the first frame whose sound a chunk uses."""
        return max(first_frame - self.facts.history_frames - self.facts.audio_window, 0)
