"""Run the motion deployment, which makes chunks of motion for many streams.

A stream is the motion of one video. A chunk is a group of frames whose motion latents are denoised together. The engine
batches the DDIM steps of all chunks in progress.

A replica keeps no state of a stream between two chunks. Therefore any replica can make a stream's next chunk, even a
replica that has just replaced a failed one, or that has new weights.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from xactor.audio.encoder import AudioEncoder, load_audio_encoder
from xactor.model_folder import MOTION_COMPONENTS, local_folder
from xactor.motion import MotionEngine, MotionStream, load_motion_model
from xactor_serving.device import replica_device
from xactor_serving.metrics import metrics
from xactor_serving.replica_messages import ChunkJob, MotionFacts

# Number of frames by which a stream may be ahead of its viewer before the engine pauses the stream. Each job ends after
# a bounded number of frames, so the engine needs no such bound, and this number is never reached.
_NO_LIMIT = 10**9


@serve.deployment(name="motion", health_check_period_s=5, health_check_timeout_s=30)
class Motion:
    """Run one replica of the motion model.

    Args:
        model: Model folder or its URI.
        device: auto, cpu or cuda.
        max_streams: Maximum number of chunks in progress.
        max_batch: Maximum number of streams in one forward pass.
        stuck_s: Maximum seconds for one forward pass. After them the health check fails.
    """

    def __init__(self, model: str, *, device: str, max_streams: int, max_batch: int, stuck_s: float):
        device = replica_device(device)
        folder = Path(local_folder(model, components=(*MOTION_COMPONENTS, "audio_encoder")))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        transformer = load_motion_model(folder, device=device, dtype=dtype)
        self._encoder = load_audio_encoder(folder / "audio_encoder").to(device)
        self._config = transformer.config
        engine = MotionEngine(
            transformer, max_streams=max_streams, max_batch=max_batch, run_ahead_frames=_NO_LIMIT
        )
        self._worker = EngineThread(engine, self._encoder)
        self._stuck_s = stuck_s

    async def facts(self) -> MotionFacts:
        """Return the description of the model."""
        config = self._config
        return MotionFacts(
            latent_dim=config.latent_dim,
            chunk_frames=config.chunk_frames,
            history_frames=config.history_frames,
            audio_window=config.audio_window,
            windows=self._encoder.windows,
        )

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """Yield a chunk's latents in pieces, float32 [n, D], as soon as they are fully denoised."""
        begun = time.monotonic()
        with metrics().queued("motion"):
            async for piece in self._worker.chunk(job):
                yield piece
        metrics().chunk_s.observe(time.monotonic() - begun)

    def check_health(self) -> None:
        """Raise when the replica is stuck. Serve calls this periodically and replaces a replica that raises."""
        busy_s = self._worker.busy_s
        if busy_s > self._stuck_s:
            raise RuntimeError(f"the motion model has been in one step for {busy_s:.0f} s")
        if not self._worker.alive:
            raise RuntimeError("the motion engine's thread has ended")


class EngineThread:
    """Run an engine in a separate thread, and give its results to callers on an event loop.

    Args:
        engine: The engine. No other thread may use it.
        encoder: Computes the audio features.
    """

    def __init__(self, engine: MotionEngine, encoder: AudioEncoder):
        self._engine, self._encoder = engine, encoder
        self._inbox: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()
        # Time at which the current step began, or the current admission of a job to the engine. None while the thread
        # waits for work.
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="motion-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Return the seconds that the current step or admission of a job has taken so far; 0 while there is no work."""
        busy_since = self._busy_since
        return 0.0 if busy_since is None else time.monotonic() - busy_since

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """Yield a chunk's latents in pieces, float32 [n, D], as soon as they are fully denoised.

        Closing the generator frees the stream at the next step.

        Raises:
            ValueError: The engine refuses the job, or the model's latents are NaN.
        """
        ticket = _Ticket(job)
        self._inbox.put(ticket)
        try:
            while (result := await ticket.results.get()) is not None:
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            ticket.closed = True

    def _run(self) -> None:
        """Step the engine for as long as the process lives, and admit new tickets (waiting jobs) between the steps."""
        active: list[_Ticket] = []
        while True:
            # Wait for a ticket while there is no work. Otherwise admit only the tickets that have arrived already.
            while not active or not self._inbox.empty():
                if not active:
                    # This wait may last long, and is no sign of a stuck replica.
                    self._busy_since = None
                ticket = self._inbox.get()
                # Admission computes the audio features, so it is timed like a step.
                self._busy_since = time.monotonic()
                if not ticket.closed and self._admit(ticket):
                    active.append(ticket)
            # Restart the clock, because the health check bounds the time of each step and of each admission alone.
            self._busy_since = time.monotonic()
            try:
                stepped = self._engine.step()
            except Exception as error:
                # If the engine's step fails, all active jobs fail.
                for ticket in active:
                    ticket.send(error)
                    ticket.closed = True
            else:
                metrics().batch_size.observe(len(stepped), {"of": "motion"})
                for ticket in active:
                    self._deliver(ticket, stalled=not stepped)
            for ticket in active:
                if ticket.closed and ticket.stream is not None:
                    ticket.stream.close()
            active = [ticket for ticket in active if not ticket.closed]

    def _admit(self, ticket: "_Ticket") -> bool:
        """Open a stream in the engine for a ticket's job. Return False if that failed."""
        job, config = ticket.job, self._engine.model.config
        try:
            first = config.first_audio_frame(job.first_frame)
            features = self._encoder.features_of(job.samples, first, job.known_frames, start=job.samples_from)
            ticket.stream = self._engine.open(
                seed=job.seed,
                config=job.sampling,
                first_frame=job.first_frame,
                history=torch.tensor(job.past),
            )
            ticket.stream.played = job.first_frame - job.buffered_frames
            ticket.stream.feed(torch.from_numpy(features))
            if job.ended:
                ticket.stream.end()
        except Exception as error:
            # Only this job fails. The other streams continue.
            ticket.send(error)
            if ticket.stream is not None:
                ticket.stream.close()
            return False
        return True

    def _deliver(self, ticket: "_Ticket", *, stalled: bool) -> None:
        """Send the latents that are now fully denoised. Then close the ticket if its job is complete or cannot go on.

        Args:
            ticket: An active ticket.
            stalled: Whether the engine's last step found no stream to advance.
        """
        stream, job = ticket.stream, ticket.job
        assert stream is not None
        try:
            z = stream.take()
        except ValueError as error:
            ticket.send(error)
            ticket.closed = True
            return
        if len(z):
            ticket.send(z.cpu().numpy())
        chunk_end = job.first_frame + self._engine.model.config.chunk_frames
        # At the end of the sound a job asks for all remaining frames, which may be more or fewer than a chunk.
        complete = stream.done if job.ended else stream.made >= chunk_end
        if complete:
            ticket.send(None)
            ticket.closed = True
        elif stalled:
            ticket.send(
                ValueError(f"the sound up to frame {job.known_frames} does not suffice for the chunk")
            )
            ticket.closed = True


class _Ticket:
    """Hold a job, its stream in the engine and the queue of its results."""

    def __init__(self, job: ChunkJob):
        self.job = job
        self.results: asyncio.Queue[Any] = asyncio.Queue()
        self.stream: MotionStream | None = None
        # True when no more results are sent, because the job is complete or has failed, or its caller has gone.
        self.closed = False
        self._loop = asyncio.get_running_loop()

    def send(self, result: np.ndarray | Exception | None) -> None:
        """Queue a result for the caller, from the engine's thread. None ends the results."""
        self._loop.call_soon_threadsafe(self.results.put_nowait, result)
