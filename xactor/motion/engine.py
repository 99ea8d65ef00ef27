"""Generate the motion of many recordings at once (Paper 3.3.1).

A stream is the motion of one recording. It is generated chunk by chunk until its audio ends. A chunk is a number of
frames that are denoised together. Its history is the frames before it that the model sees.

    engine = MotionEngine(model)
    stream = engine.open(seed=0)
    # Feed features as they arrive, and call stream.end() after the last ones.
    stream.feed(features)
    while not stream.done:
        engine.step()
        z = stream.take()
        # The engine pauses a stream that is far ahead of its viewer.
        stream.played = stream.made

One step of the engine is one forward pass. There are two kinds of passes:

- one DDIM step of several streams, each with its own noise levels and frame numbers;
- a history pass over the history of one stream, which must precede the DDIM steps of a new chunk.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xactor.motion.cache import HistoryCache
from xactor.motion.sampling_config import SamplingConfig
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.stream import MotionStream, StepInput
from xactor.motion.transformer import MotionTransformer


class EngineFull(RuntimeError):
    """Report that the engine has no room for another stream now."""


class MotionEngine:
    """Generate the streams of one model step by step. Only one thread at a time may use an engine."""

    def __init__(
        self,
        model: MotionTransformer,
        *,
        max_streams: int = 8,
        max_batch: int = 8,
        run_ahead_frames: int = 250,
    ):
        """Allocate an engine with room for the histories of `max_streams` streams.

        Args:
            model: The motion transformer.
            max_streams: Maximum number of open streams.
            max_batch: Maximum number of streams in one DDIM step.
            run_ahead_frames: A stream pauses while it has at least this many frames that are made and not yet played.
        """
        bounds = {"max_streams": max_streams, "max_batch": max_batch, "run_ahead_frames": run_ahead_frames}
        for name, value in bounds.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.model = model.eval()
        self.max_streams, self.max_batch, self.run_ahead_frames = max_streams, max_batch, run_ahead_frames
        # Open streams in the order in which they were opened, and the slot of each. A slot is two rows of the cache,
        # one for each branch of classifier-free guidance: row 2 * slot for the conditional branch (cond), and row
        # 2 * slot + 1 for the unconditional branch (uncond), whose audio is dropped.
        self._slots: dict[MotionStream, int] = {}
        self._last_was_history = False
        self._cache = HistoryCache(
            model.config.backbone,
            rows=2 * max_streams,
            capacity=model.config.history_frames,
            chunk_frames=model.config.chunk_frames,
            like=model.latent_in.weight.detach(),
        )

    def open(
        self,
        *,
        seed: int,
        config: SamplingConfig | None = None,
        first_frame: int = 0,
        history: Tensor | None = None,
    ) -> MotionStream:
        """Open a stream, which takes part from the next step on.

        The new stream may continue a stream of another engine that has the same weights, from the end of a chunk.

        Args:
            seed: Seed of the noise. A frame's noise depends only on the seed and the frame number.
            config: The sampling options.
            first_frame: Number of the first frame to make. The features to feed start at frame
                `model.config.first_audio_frame(first_frame)`.
            history: Latents of the frames before `first_frame`, [n, D], as `MotionStream.take` returns them: all of
                these frames, or at least the last `model.config.history_frames`.

        Raises:
            EngineFull: `max_streams` streams are open.
            ValueError: `history` is too short or has a wrong shape, or its numbers are not finite; or the model was not
                trained with the chunk length.
        """
        self._check_history(first_frame, history)
        config = config or SamplingConfig()
        self.model.config.check_chunk(config.chunk_frames)
        # Reading `streams` also removes closed streams.
        if len(self.streams) == self.max_streams:
            raise EngineFull(f"at most {self.max_streams} streams may be open at once, and all are")
        slot = min(set(range(self.max_streams)) - set(self._slots.values()))
        self._cache.clear(slice(2 * slot, 2 * slot + 2))
        stream = MotionStream(
            self.model,
            seed=seed,
            config=config,
            first_frame=first_frame,
            history=history,
        )
        self._slots[stream] = slot
        return stream

    @property
    def streams(self) -> list[MotionStream]:
        """Return the open streams, in the order in which they were opened."""
        self._slots = {stream: slot for stream, slot in self._slots.items() if stream.is_open}
        return list(self._slots)

    @torch.inference_mode()
    def step(self) -> list[MotionStream]:
        """Run one forward pass. Return the streams that advanced: none if all wait for audio or for their viewers."""
        ready = [s for s in self.streams if s.made - s.played < self.run_ahead_frames and not s.needs_audio]
        # The stream with the smallest playback buffer comes first. The sort is stable, so among equals the stream that
        # was opened first comes first.
        chosen = sorted(ready, key=lambda s: s.made - s.played)[: self.max_batch]
        for stream in chosen:
            stream.begin_chunk()
        need_history = [s for s in chosen if s.needs_history_pass]
        denoising = [s for s in chosen if not s.needs_history_pass]
        # A history pass takes long. So it serves only one stream, and a DDIM step of other streams runs between two
        # history passes.
        denoising_is_due = self._last_was_history and bool(denoising)
        self._last_was_history = bool(need_history) and not denoising_is_due
        if self._last_was_history:
            self._cache_history(need_history[0])
            return need_history[:1]
        if denoising:
            self._denoise(denoising)
        return denoising

    def _check_history(self, first_frame: int, history: Tensor | None) -> None:
        needed = min(first_frame, self.model.config.history_frames)
        given = 0 if history is None else len(history)
        if first_frame < 0 or given < needed:
            raise ValueError(
                f"a stream from frame {first_frame} on must have at least the {needed} latents before it, got {given}"
            )
        if history is None:
            return
        if history.dim() != 2 or history.shape[1] != self.model.config.latent_dim:
            raise ValueError(
                f"history must be [n, {self.model.config.latent_dim}], got {list(history.shape)}"
            )
        if not torch.isfinite(history).all():
            raise ValueError("history must be finite, got NaN or infinite numbers")

    def _cache_history(self, stream: MotionStream) -> None:
        """Compute and cache the keys and values of the history of a stream's chunk, for each guidance branch.

        All DDIM steps of the chunk read them.
        """
        history = stream.history_input()
        branches = [history.audio]
        if stream.config.audio_cfg != 1:
            branches.append(self._uncond(history.audio))
        rows = slice(2 * self._slots[stream], 2 * self._slots[stream] + len(branches))

        def repeat(x: Tensor) -> Tensor:
            return x.expand(len(branches), *x.shape)

        self.model(
            repeat(history.z_k),
            repeat(history.levels),
            torch.stack(branches),
            repeat(history.audio_real),
            chunk_frames=self._chunk_frames([stream] * len(branches)),
            history=self._cache.write(rows, len(history.z_k)),
        )
        stream.history_cached()

    def _denoise(self, streams: list[MotionStream]) -> None:
        """Run one DDIM step of each stream's chunk. One forward pass serves all streams."""
        steps = [stream.step_input() for stream in streams]
        z_k = pad_sequence([step.z_k for step in steps], batch_first=True)  # [B, T, D]
        levels = pad_sequence([step.levels for step in steps], batch_first=True).to(
            self.model.device
        )  # [B, T]
        next_levels = pad_sequence([step.next_levels for step in steps], batch_first=True).to(
            levels
        )  # [B, T]
        v = self._velocity(streams, steps, z_k, levels)
        z_k = MotionScheduler().step(v, z_k, levels, next_levels)
        for stream, step, row in zip(streams, steps, z_k, strict=True):
            stream.advance(row[: len(step.z_k)])

    def _velocity(
        self, streams: list[MotionStream], steps: list[StepInput], z_k: Tensor, levels: Tensor
    ) -> Tensor:
        """Return the guided velocity of every stream, float32 [B, T, D]."""
        guided = [row for row, stream in enumerate(streams) if stream.config.audio_cfg != 1]
        # Rows of the pass: the cond branch of every stream, then the uncond branch of every stream with guidance.
        rows = [*range(len(streams)), *guided]
        audio = [step.audio for step in steps] + [self._uncond(steps[row].audio) for row in guided]
        slots = [2 * self._slots[stream] for stream in streams]
        slots += [2 * self._slots[streams[row]] + 1 for row in guided]
        history_frames = torch.tensor([steps[row].history_frames for row in rows])
        velocity = self.model(
            z_k[rows],
            levels[rows],
            pad_sequence(audio, batch_first=True),
            pad_sequence([steps[row].audio_real for row in rows], batch_first=True),
            frames=torch.tensor([len(steps[row].z_k) for row in rows], device=self.model.device),
            chunk_frames=self._chunk_frames([streams[row] for row in rows]),
            history=self._cache.read(torch.tensor(slots), history_frames),
        ).float()
        v, uncond = velocity[: len(streams)], velocity[len(streams) :]
        if guided:
            configs = [streams[row].config for row in guided]
            values = torch.tensor([(c.audio_cfg, c.cfg_rescale) for c in configs], device=self.model.device)
            scale, rescale = values.T[..., None, None]  # [guided, 1, 1] each
            cond = v[guided]
            out = uncond + scale * (cond - uncond)
            # Guidance makes the velocity larger. `rescale` resets its size: 0 not at all, 1 to the size of cond.
            v[guided] = out * (1 + rescale * (_size(cond) / _size(out) - 1))
        return v

    def _chunk_frames(self, streams: list[MotionStream]) -> Tensor | None:
        """Return the chunk length of each row of a pass, int [B], or None if all equal the model's chunk_frames."""
        lengths = [stream.chunk_frames for stream in streams]
        if set(lengths) == {self.model.config.chunk_frames}:
            return None
        return torch.tensor(lengths, device=self.model.device)

    def _uncond(self, audio: Tensor) -> Tensor:
        """Return the learned embedding of dropped audio, repeated to the shape of the audio embeddings [n, A]."""
        return self.model.audio_fusion.dropped.expand_as(audio)


def _size(v: Tensor) -> Tensor:
    """Return the RMS of each frame's velocity [B, T, D]: [B, T, 1]."""
    return v.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


def sample_motion(
    model: MotionTransformer, audio: Tensor, *, seeds: list[int], config: SamplingConfig | None = None
) -> Tensor:
    """Return the motion of whole recordings: latents as files store them, not standardised, float32 [B, T, D].

    Args:
        model: The motion transformer.
        audio: Features [B, T, L, F] of recordings of the same length.
        seeds: One seed per recording. A frame's noise depends only on the seed and the frame number.
        config: The sampling options.
    """
    if len(seeds) != len(audio):
        raise ValueError(f"seeds must be one per recording, {len(audio)}, got {len(seeds)}")
    engine = MotionEngine(model, max_streams=len(seeds), max_batch=len(seeds))
    streams = [engine.open(seed=seed, config=config) for seed in seeds]
    for stream, features in zip(streams, audio, strict=True):
        stream.feed(features)
        stream.end()
    made: list[list[Tensor]] = [[] for _ in streams]
    while not all(stream.done for stream in streams):
        engine.step()
        for stream, pieces in zip(streams, made, strict=True):
            pieces.append(stream.take())
            stream.played = stream.made
    return torch.stack([torch.cat(pieces) for pieces in made])


def stream_motion(
    model: MotionTransformer, audio: Iterable[Tensor], *, seed: int, config: SamplingConfig | None = None
) -> Iterator[Tensor]:
    """Yield the motion of one recording, each piece as soon as its audio has arrived.

    A piece is latents as files store them, not standardised, float32 [n, D].

    Args:
        model: The motion transformer.
        audio: Features [n, L, F] in pieces of any length.
        seed: Seed of the noise. A frame's noise depends only on the seed and the frame number.
        config: The sampling options.
    """
    engine = MotionEngine(model, max_streams=1)
    stream = engine.open(seed=seed, config=config)
    pieces = iter(audio)
    while not stream.done:
        if not engine.step():
            piece = next(pieces, None)
            if piece is None:
                stream.end()
            else:
                stream.feed(piece)
        elif len(z := stream.take()):
            stream.played = stream.made
            yield z
