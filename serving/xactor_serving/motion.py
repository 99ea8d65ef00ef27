"""The motion deployment: chunks of any number of performances, their DDIM steps batched by the engine.

A replica keeps nothing of a performance between two chunks. So its next chunk may be made anywhere: after a failure, by
a replica that was started since, or by new weights.
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
from xactor.motion import MotionEngine, MotionStream, MotionTransformer
from xactor.weights import local_folder
from xactor_serving.metrics import metrics
from xactor_serving.work import ChunkJob, MotionFacts

_NO_LIMIT = 10**9


@serve.deployment(name="motion", health_check_period_s=5, health_check_timeout_s=30)
class Motion:
    """One replica.

    Args:
        model: a pipeline's folder or URI. max_streams: chunks in the making. max_batch: how many step together.
        stuck_s: a step that takes longer is a failed health check.
    """

    def __init__(self, model: str, *, max_streams: int, max_batch: int, stuck_s: float):
        folder = Path(local_folder(model, parts=("motion", "audio_encoder")))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        transformer = MotionTransformer.from_pretrained(folder / "motion", dtype=dtype).to(device)  # pyright: ignore
        self._encoder = load_audio_encoder(folder / "audio_encoder").to(device)
        self._config = transformer.config
        engine = MotionEngine(
            transformer, max_streams=max_streams, max_batch=max_batch, run_ahead_frames=_NO_LIMIT
        )
        self._worker = EngineThread(engine, self._encoder)
        self._stuck_s = stuck_s

    async def facts(self) -> MotionFacts:
        config = self._config
        return MotionFacts(
            latent_dim=config.latent_dim,
            chunk_frames=config.chunk_frames,
            history_frames=config.history_frames,
            audio_window=config.audio_window,
            windows=self._encoder.windows,
        )

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """Its latents as they come out clean, float32 [n, D] each."""
        begun = time.monotonic()
        with metrics().queued("motion"):
            async for piece in self._worker.chunk(job):
                yield piece
        metrics().chunk_s.observe(time.monotonic() - begun)

    def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises."""
        busy_s = self._worker.busy_s
        if busy_s > self._stuck_s:
            raise RuntimeError(f"the motion model has been in one step for {busy_s:.0f} s")
        if not self._worker.alive:
            raise RuntimeError("the motion engine's thread has ended")


class EngineThread:
    """Steps an engine in a thread of its own, for callers of an event loop."""

    def __init__(self, engine: MotionEngine, encoder: AudioEncoder):
        self._engine, self._encoder = engine, encoder
        self._inbox: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()
        self._step_begun: float | None = None
        self._thread = threading.Thread(target=self._run, name="motion-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """How long the step that is being made has taken so far."""
        begun = self._step_begun
        return 0.0 if begun is None else time.monotonic() - begun

    async def chunk(self, job: ChunkJob) -> AsyncGenerator[np.ndarray, None]:
        """A chunk's latents as they come out clean, [n, D] each. Who stops listening frees its place with the step.

        Raises:
            ValueError: a job that the engine does not take, or a model that makes NaN of it.
        """
        ticket = _Ticket(job)
        self._inbox.put(ticket)
        try:
            while (piece := await ticket.out.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            ticket.left = True

    def _run(self) -> None:
        going: list[_Ticket] = []
        while True:
            while not going or not self._inbox.empty():
                if not going:
                    self._step_begun = None
                ticket = self._inbox.get()
                self._step_begun = time.monotonic()
                if not ticket.left and self._admit(ticket):
                    going.append(ticket)
            self._step_begun = time.monotonic()
            try:
                moved = self._engine.step()
            except Exception as error:  # a pass fails for all that were in it
                for ticket in going:
                    ticket.say(error)
                    ticket.left = True
            else:
                metrics().batch.observe(len(moved), {"of": "motion"})
                for ticket in going:
                    self._deliver(ticket, stalled=not moved)
            for ticket in going:
                if ticket.left and ticket.stream is not None:
                    self._engine.close(ticket.stream)
            going = [ticket for ticket in going if not ticket.left]

    def _admit(self, ticket: "_Ticket") -> bool:
        job, config = ticket.job, self._engine.model.config
        try:
            first = config.heard_from(job.first_frame)
            features = self._encoder.features_of(job.samples, first, job.known_frames, start=job.samples_from)
            ticket.stream = self._engine.open(
                seed=job.seed,
                config=job.sampling,
                first_frame=job.first_frame,
                past=torch.tensor(job.past),
            )
            ticket.stream.played = job.first_frame - job.buffered_frames
            ticket.stream.hear(torch.from_numpy(features))
            if job.ended:
                ticket.stream.end()
        except Exception as error:  # its own; the others go on
            ticket.say(error)
            if ticket.stream is not None:
                self._engine.close(ticket.stream)
            return False
        return True

    def _deliver(self, ticket: "_Ticket", *, stalled: bool) -> None:
        """Hands out what has been made for a ticket."""
        stream, job = ticket.stream, ticket.job
        assert stream is not None
        try:
            z = stream.take()
        except ValueError as error:
            ticket.say(error)
            ticket.left = True
            return
        if len(z):
            ticket.say(z.cpu().numpy())
        whole = stream.made >= job.first_frame + self._engine.model.config.chunk_frames
        if stream.done if job.ended else whole:
            ticket.say(None)
            ticket.left = True
        elif stalled:
            ticket.say(ValueError(f"the sound up to frame {job.known_frames} does not suffice for the chunk"))
            ticket.left = True


class _Ticket:
    """A job, and where its results go."""

    def __init__(self, job: ChunkJob):
        self.job = job
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.stream: MotionStream | None = None
        self.left = False  # nobody listens any more
        self._loop = asyncio.get_running_loop()

    def say(self, what: np.ndarray | Exception | None) -> None:
        """From the engine's thread. None is the end."""
        self._loop.call_soon_threadsafe(self.out.put_nowait, what)
