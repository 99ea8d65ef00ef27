"""Generate the frames of one video from its sound, by calls to any replicas of the motion model and the renderer.

A call makes either one chunk or one window. A chunk is a group of frames whose motion latents the motion model denoises
together. A window is a group of frames that the renderer denoises together. Several windows are rendered concurrently.

The ingress holds the whole state of a video: its last latents and its sound. Replicas hold no state of a video, so if a
replica is lost, another replica can retry the call.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from xactor.audio import sound_needed
from xactor.motion import SamplingConfig
from xactor.rates import FPS, SAMPLES_PER_FRAME, frame_count
from xactor.render import Blend, Cutter, RenderConfig
from xactor_serving.replica_messages import ChunkJob, MotionFacts, PortraitJob, WindowJob

MakeChunk = Callable[[ChunkJob], AsyncGenerator[np.ndarray, None]]
MakeWindow = Callable[[WindowJob], Awaitable[np.ndarray]]


class SoundBuffer:
    """Buffer sound as it arrives, and drop what the motion no longer needs.

    The time of each method does not grow with the sound that waits.

    Attributes:
        ended: Whether the sound is complete.
        received: Number of samples that have arrived, including the dropped ones.
    """

    def __init__(self):
        self.ended = False
        self.received = 0
        # Blocks of samples, each with the index of its first sample in the whole sound.
        self._blocks: deque[tuple[int, np.ndarray]] = deque()
        # Is set when samples arrive or the sound ends.
        self._arrived = asyncio.Event()

    @classmethod
    def whole(cls, samples: np.ndarray) -> "SoundBuffer":
        """Return a buffer of sound that is complete: float32 [N]."""
        sound = cls()
        sound.append(samples)
        sound.end()
        return sound

    def append(self, samples: np.ndarray) -> None:
        """Add the next samples, float32 [N]."""
        self._blocks.append((self.received, samples))
        self.received += len(samples)
        self._arrived.set()

    def end(self) -> None:
        """Mark the sound as complete."""
        self.ended = True
        self._arrived.set()

    async def wait_until(self, sample: int) -> None:
        """Wait until the first `sample` samples of the sound have arrived, or the sound has ended."""
        while self.received < sample and not self.ended:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self, first: int, last: int) -> np.ndarray:
        """Return the samples first..last-1 of the whole sound, float32 [N], or fewer if the buffer ends before `last`.

        Drop the samples before `first`.
        """
        while self._blocks and self._blocks[0][0] + len(self._blocks[0][1]) <= first:
            self._blocks.popleft()
        taken = [np.zeros(0, np.float32)]
        for begin, block in self._blocks:
            if begin >= last:
                break
            taken.append(block[max(first - begin, 0) : last - begin])
        return np.concatenate(taken)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generate one video."""

    portrait: Callable[[], Awaitable[PortraitJob]]
    """Function that returns the portrait. The windows wait for the portrait, the motion does not."""
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
    """Function that makes a chunk of motion on some replica."""
    make_window: MakeWindow
    """Function that renders a window on some replica."""
    windows_ahead: int = 4
    """Maximum number of windows, rendered or in progress, in the queue from which `frames` takes them."""

    async def frames(self) -> AsyncGenerator[list[np.ndarray], None]:
        """Yield the video's frames in order, in lists of uint8 [S, S, 3], 25 frames for each second of sound.

        Each list holds the frames that the next window completes. Frames that two windows share are complete after the
        second window. Closing the generator cancels the work.
        """
        windows: asyncio.Queue[asyncio.Future[np.ndarray | None]] = asyncio.Queue(self.windows_ahead)
        first_frames_sent = asyncio.Event()
        motion = asyncio.create_task(self._generate(windows, first_frames_sent))
        blend = Blend(self.rendering)
        current: asyncio.Future[np.ndarray | None] | None = None
        try:
            while True:
                current = await windows.get()
                if (window := await current) is None:
                    break
                yield list(blend.add(window))
                first_frames_sent.set()
            yield list(blend.rest())
        finally:
            tasks: list[asyncio.Future] = [motion]
            if current is not None:
                tasks.append(current)
            motion.cancel()
            while not windows.empty():
                tasks.append(windows.get_nowait())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, windows: asyncio.Queue, first_frames_sent: asyncio.Event) -> None:
        """Generate motion chunk by chunk, and start to render each window as soon as its latents are complete.

        The queue's last entry is a future with None, or with the error that ended the motion. `frames` therefore yields
        all frames that were made before an error, and then raises the error.

        Args:
            windows: Queue to which this method adds a future of each window's frames.
            first_frames_sent: Is set when `frames` has yielded the first window's frames.
        """
        cutter = Cutter(self.rendering, np.concatenate, lead_frames=self.rendering.lead_frames)
        end: asyncio.Future[np.ndarray | None] = asyncio.get_running_loop().create_future()
        try:
            async with aclosing(self._motion()) as pieces:
                async for piece in pieces:
                    for window in cutter.add(piece):
                        await self._start(windows, *window)
                        # The viewer waits for the first window, so no other window of this video may compete with it.
                        await first_frames_sent.wait()
            for window in cutter.rest():
                await self._start(windows, *window)
            end.set_result(None)
        except Exception as error:
            end.set_exception(error)
        await windows.put(end)

    async def _start(
        self, windows: asyncio.Queue, first_frame: int, z: np.ndarray, origin: np.ndarray
    ) -> None:
        """Start to render the window of latents z, [W, D], and wait until the queue has space for its future."""
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
        """Yield latents float32 [n, D] as they are made.

        The first ones are those of the silence before the sound, see `RenderConfig.lead_frames`. The motion replicas
        count frames and samples from its start.
        """
        facts, sound, lead_frames = self.facts, self.sound, self.rendering.lead_frames
        lead = lead_frames * SAMPLES_PER_FRAME
        past = np.zeros((0, facts.latent_dim), np.float32)
        # Number of frames whose latents are made, which is the index of the next frame.
        first = 0
        # When the first latents were made, which is about when the viewer starts to play.
        play_begun: float | None = None
        clock = asyncio.get_running_loop()
        while True:
            # The chunk's last frame also depends on the audio of the `audio_window` frames after it. `known` is the
            # number of frames, from the video's start, whose audio features this chunk needs.
            known = first + facts.chunk_frames + facts.audio_window
            from_sample, to_sample = sound_needed(self._first_audio_frame(first), known, facts.windows)
            await sound.wait_until(to_sample - lead)
            frames = lead_frames + frame_count(sound.received)
            ended = sound.ended and frames <= known
            if ended:
                # The sound ends here, so this job makes all remaining frames.
                known = frames
                if first >= known:
                    return
            played = 0 if play_begun is None else int((clock.time() - play_begun) * FPS)
            silence = np.zeros(max(lead - from_sample, 0), np.float32)
            heard = sound.take(max(from_sample - lead, 0), to_sample - lead)
            job = ChunkJob(
                seed=self.seed,
                sampling=self.sampling,
                first_frame=first,
                past=past,
                samples=np.concatenate([silence, heard]),
                samples_from=from_sample,
                known_frames=known,
                ended=ended,
                buffered_frames=max(first - lead_frames - played, 0),
            )
            async with aclosing(self.make_chunk(job)) as pieces:
                async for z in pieces:
                    past = np.concatenate([past, z])[-facts.history_frames :]
                    first += len(z)
                    if play_begun is None and first > lead_frames:
                        play_begun = clock.time()
                    yield z
            if ended:
                return
            assert first > job.first_frame, "a chunk without frames"

    def _first_audio_frame(self, first_frame: int) -> int:
        """Return the first frame whose audio features are needed for the chunk at `first_frame` and its history."""
        return max(first_frame - self.facts.history_frames - self.facts.audio_window, 0)
