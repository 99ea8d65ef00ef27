"""The motion engine: many performances at once, each chunk by chunk, for as long as their sound lasts (Paper 3.3.1).

    engine = MotionEngine(model)
    stream = engine.open(seed=0)
    stream.hear(features)  # as they arrive; then stream.end()
    while not stream.done:
        engine.step()
        z = stream.take()

One step of the engine is one forward pass: a DDIM step of several streams, each at its own noise level and its own
place, or the pass over one stream's history that a new chunk begins with.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xactor.motion.cache import HistoryCache
from xactor.motion.noise_levels import MAX_LEVEL
from xactor.motion.sampling import sampling_plan
from xactor.motion.sampling_config import SamplingConfig
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer
from xactor.randomness import frame_noise


class EngineFull(RuntimeError):
    """No room for another stream now."""


class MotionStream:
    """One performance, from `MotionEngine.open`. Its memory does not grow with its length.

    Attributes:
        made: how many frames of motion there are so far.
        played: how many of them the viewer has seen, which the owner keeps true: the engine serves the stream first
            whose viewer will wait first, and lets a stream rest that is far ahead of its viewer.
        error: why it stopped, if it failed.
    """

    def __init__(
        self,
        model: MotionTransformer,
        slot: int,
        seed: int,
        config: SamplingConfig,
        first_frame: int,
        past: Tensor | None,
    ):
        self.seed, self.config = seed, config
        self.made = self.played = first_frame
        self.error: Exception | None = None
        self._model, self._slot = model, slot
        # How many frames of a full chunk have begun to fall, by row of the plan.
        plan = sampling_plan(0, model.config.chunk_frames, 1, config)
        self._moving = (plan < MAX_LEVEL).sum(1).tolist()
        self._open = True
        self._audio = torch.zeros(0, model.config.audio_layers, model.config.audio_dim)  # features [n, L, F]
        self._audio_first = model.config.heard_from(first_frame)  # of which frame `_audio` begins
        self._ended = False
        none = torch.zeros(0, model.config.latent_dim, device=model.device)
        # [H, D] standardised
        self._past = (
            none if past is None else model.standardise(past.to(model.device))[-model.config.history_frames :]
        )
        self._first = first_frame  # of the chunk
        self._chunk: _Chunk | None = None
        self._ready: list[Tensor] = []  # made and not taken

    def hear(self, features: Tensor) -> None:
        """Features of the next frames, [n, L, F], in pieces of any length.

        Raises:
            ValueError: another shape, a number that is not finite, or sound after the end. The stream is as it was.
        """
        config = self._model.config
        wanted = (config.audio_layers, config.audio_dim)
        if features.dim() != 3 or tuple(features.shape[1:]) != wanted:
            raise ValueError(
                f"audio features must be [n, {wanted[0]}, {wanted[1]}], got {list(features.shape)}"
            )
        if self._ended:
            raise ValueError(f"audio after the stream's end at frame {self._heard}")
        if not torch.isfinite(features).all():
            raise ValueError(f"audio features from frame {self._heard} hold NaN or infinite numbers")
        self._audio = torch.cat([self._audio, features.cpu()])

    def end(self) -> None:
        """No more will be heard.

        Raises:
            ValueError: nothing was.
        """
        if self._heard == 0:
            raise ValueError("the stream is empty: it ended before any audio")
        self._ended = True
        if self._chunk is None and self._first == self._heard:
            self._open = False

    def take(self) -> Tensor:
        """The motion made since it was last taken: stored latents float32 [n, D].

        Raises:
            ValueError: the stream failed, and all that it made before has been taken.
        """
        if not self._ready and self.error is not None:
            raise self.error
        taken, self._ready = self._ready, []
        return torch.cat([torch.zeros(0, self._model.config.latent_dim, device=self._model.device), *taken])

    @property
    def done(self) -> bool:
        """Nothing more will come, and all has been taken."""
        return not self._open and not self._ready and self.error is None

    @property
    def waits_for_sound(self) -> bool:
        """Whether its next step needs more of it than was heard."""
        row = 0 if self._chunk is None else self._chunk.row
        needed = self._first + self._moving[row + 1] + self._model.config.audio_window
        return not self._ended and self._heard < needed

    @property
    def _heard(self) -> int:
        return self._audio_first + len(self._audio)

    def _begin(self) -> None:
        size, capacity = self._model.config.chunk_frames, self._model.config.history_frames
        plan = sampling_plan(len(self._past), size, capacity, self.config)
        z = frame_noise(self.seed, "chunk", self._first, size, self._past.shape[1]).to(self._past)
        past = len(self._past)
        self._chunk = _Chunk(plan[0, :past], plan[:, past:], z, remembered=past == 0)

    def _noised_past(self) -> tuple[Tensor, Tensor]:
        """The history as this chunk sees it, [H, D], and its levels [H]."""
        assert self._chunk is not None
        h = len(self._past)
        eps = frame_noise(self.seed, "history", self._first - h, h, self._past.shape[1]).to(self._past)
        levels = self._chunk.past_levels.to(eps.device)
        return MotionScheduler().add_noise(self._past[None], eps[None], levels[None])[0], levels

    def _around(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Audio embeddings from w before frame `first` to w past `last`, [n + 2w, A]; which exist, bool [n + 2w]."""
        # Embedded here and not as they come: the same frames together round the same, whatever the pieces.
        window, device = self._model.config.audio_window, self._model.device
        place = torch.arange(first - window, last + window)
        real = (place >= 0) & (place < self._heard)
        features = self._audio[(place - self._audio_first).clamp(0, len(self._audio) - 1)]
        return self._model.embed_audio(features.to(device)[None])[0], real.to(device)

    def _moved(self, z: Tensor, row: int) -> None:
        """The chunk after a step: its moving frames [n, D] are at `row` now. Hands out those that came out clean."""
        chunk = self._chunk
        assert chunk is not None
        chunk.z[: len(z)], chunk.row = z, row
        clean = min(int((chunk.levels[row] == 0).sum()), len(z))
        if clean > chunk.clean:
            self._hand_out(chunk.z[chunk.clean : clean])
            chunk.clean = clean
        size = len(chunk.z)
        if clean == (min(size, self._heard - self._first) if self._ended else size):
            self._finish(chunk.z[:clean])

    def _hand_out(self, z: Tensor) -> None:
        if not torch.isfinite(z).all():
            raise ValueError(f"the motion model made NaN or infinite latents at frame {self.made}")
        self._ready.append(self._model.destandardise(z))
        self.made += len(z)

    def _finish(self, chunk: Tensor) -> None:
        capacity, window = self._model.config.history_frames, self._model.config.audio_window
        self._past = torch.cat([self._past, chunk])[-capacity:]
        self._first += len(chunk)
        self._chunk = None
        keep = max(self._first - len(self._past) - window, 0)  # what the next history hears
        self._audio, self._audio_first = self._audio[keep - self._audio_first :].clone(), keep
        if self._ended and self._first >= self._heard:
            self._open = False


class _Chunk:
    """A chunk in the making: its frames [n, D] at one row of their plan."""

    def __init__(self, past_levels: Tensor, levels: Tensor, z: Tensor, *, remembered: bool):
        self.past_levels, self.levels, self.z = past_levels, levels, z
        self.row = self.clean = 0
        self.remembered = remembered  # whether the history's keys and values are in the cache
        self.audio: tuple[Tensor, Tensor] | None = None  # what its moving frames hear; see `_around`


class MotionEngine:
    """Steps streams of one model. Not for several threads at once.

    Args:
        max_streams: how many may be open; the room for their histories is taken at once.
        max_batch: how many step together.
        run_ahead_frames: a stream with so many frames made and not played rests.
    """

    def __init__(
        self,
        model: MotionTransformer,
        *,
        max_streams: int = 8,
        max_batch: int = 8,
        run_ahead_frames: int = 250,
    ):
        bounds = {"max_streams": max_streams, "max_batch": max_batch, "run_ahead_frames": run_ahead_frames}
        for name, value in bounds.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.model = model.eval()
        self.max_streams, self.max_batch, self.run_ahead_frames = max_streams, max_batch, run_ahead_frames
        self._streams: list[MotionStream] = []
        self._rested = True  # from histories: the last pass was no history's
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
        past: Tensor | None = None,
    ) -> MotionStream:
        """A new stream, from the next step on; or one that another engine, with the same weights, made up to a chunk.

        Args:
            first_frame: of what is to be made. past: the stored latents before it, [n, D], at least as many as the
                history holds or all there are. What it hears then begins at frame `config.heard_from(first_frame)`.

        Raises:
            EngineFull: `max_streams` are open.
            ValueError: a past that is no beginning of such a stream.
        """
        needed = min(first_frame, self.model.config.history_frames)
        if first_frame < 0 or (0 if past is None else len(past)) < needed:
            raise ValueError(
                f"a stream from frame {first_frame} on must have at least the {needed} latents before it, "
                f"got {0 if past is None else len(past)}"
            )
        if past is not None and (past.dim() != 2 or past.shape[1] != self.model.config.latent_dim):
            raise ValueError(f"past must be [n, {self.model.config.latent_dim}], got {list(past.shape)}")
        if past is not None and not torch.isfinite(past).all():
            raise ValueError("past holds NaN or infinite numbers")
        taken = {stream._slot for stream in self.streams}
        if len(taken) == self.max_streams:
            raise EngineFull(f"{self.max_streams} streams are open, no more are allowed")
        slot = min(set(range(self.max_streams)) - taken)
        self._cache.clear(slice(2 * slot, 2 * slot + 2))
        stream = MotionStream(self.model, slot, seed, config or SamplingConfig(), first_frame, past)
        self._streams.append(stream)
        return stream

    def close(self, stream: MotionStream) -> None:
        """Drops a stream, wherever it is, before the next step."""
        stream._open = False

    @property
    def streams(self) -> list[MotionStream]:
        """Those open, in the order of their coming."""
        self._streams = [stream for stream in self._streams if stream._open]
        return self._streams

    @torch.inference_mode()
    def step(self) -> list[MotionStream]:
        """One forward pass. The streams that it moved; none where all wait for sound or for their viewers."""
        ready = [
            s for s in self.streams if s.made - s.played < self.run_ahead_frames and not s.waits_for_sound
        ]
        chosen = sorted(ready, key=lambda s: s.made - s.played)[
            : self.max_batch
        ]  # a stable order: first come
        for stream in chosen:
            if stream._chunk is None:
                stream._begin()
        # A history's pass is long: one at a time, and the others step in between.
        fresh = [s for s in chosen if s._chunk and not s._chunk.remembered]
        going = [s for s in chosen if s not in fresh]
        self._rested = not (fresh and (self._rested or not going))
        if not self._rested:
            self._remember(fresh[0])
            return fresh[:1]
        if going:
            self._denoise(going)
        return going

    def _remember(self, stream: MotionStream) -> None:
        """Keeps the keys and values of the chunk's noised history, with audio and without, for all its steps."""
        assert stream._chunk is not None
        z, levels = stream._noised_past()
        audio, real = stream._around(stream._first - len(z), stream._first)
        branches = self._branches(audio, stream)
        rows = slice(2 * stream._slot, 2 * stream._slot + len(branches))

        def repeated(x: Tensor) -> Tensor:
            return x.expand(len(branches), *x.shape)

        past = self._cache.write(rows, len(z))
        self.model(repeated(z), repeated(levels), torch.stack(branches), repeated(real), past=past)
        stream._chunk.remembered = True

    def _denoise(self, streams: list[MotionStream]) -> None:
        """One DDIM step of each stream's chunk, all in one forward pass."""
        z, k, k_next, audios, reals = [], [], [], [], []
        for stream in streams:
            chunk = stream._chunk
            assert chunk is not None
            moving = stream._moving[chunk.row + 1]
            if stream._ended:
                moving = min(moving, stream._heard - stream._first)
            z.append(chunk.z[:moving])
            k.append(chunk.levels[chunk.row, :moving])
            k_next.append(chunk.levels[chunk.row + 1, :moving])
            if chunk.audio is None or len(chunk.audio[0]) != moving + 2 * self.model.config.audio_window:
                chunk.audio = stream._around(stream._first, stream._first + moving)
            audios.append(chunk.audio[0])
            reals.append(chunk.audio[1])
        # Rows: every stream with its audio, then those with guidance without it.
        guided = [row for row, stream in enumerate(streams) if stream.config.audio_cfg != 1]
        rows = [*range(len(streams)), *guided]
        without = [self._branches(audios[row], streams[row])[1] for row in guided]
        device = self.model.device
        slots = [2 * s._slot for s in streams] + [2 * streams[row]._slot + 1 for row in guided]
        past = self._cache.read(torch.tensor(slots), torch.tensor([len(streams[row]._past) for row in rows]))
        z_k = pad_sequence(z, batch_first=True)  # [B, T, D]
        levels, levels_next = (pad_sequence(some, batch_first=True).to(device) for some in (k, k_next))
        velocity = self.model(
            z_k[rows],
            levels[rows],
            pad_sequence([*audios, *without], batch_first=True),
            pad_sequence([reals[row] for row in rows], batch_first=True),
            frames=torch.tensor([len(z[row]) for row in rows], device=device),
            past=past,
        ).float()
        v = velocity[: len(streams)]
        if guided:  # from the velocity without audio past the one with it
            scale = torch.tensor([streams[row].config.audio_cfg for row in guided], device=device)
            unheard = velocity[len(streams) :]
            v[guided] = unheard + scale[:, None, None] * (v[guided] - unheard)
        z_k = MotionScheduler().step(v, z_k, levels, levels_next)
        for row, stream in enumerate(streams):
            assert stream._chunk is not None
            try:
                stream._moved(z_k[row, : len(z[row])], stream._chunk.row + 1)
            except ValueError as error:  # its own; the others go on
                stream.error, stream._open = error, False

    def _branches(self, audio: Tensor, stream: MotionStream) -> list[Tensor]:
        """The audio's embeddings [n, A], and with guidance what stands for none."""
        if stream.config.audio_cfg == 1:
            return [audio]
        return [audio, self.model.audio_fusion.dropped.expand_as(audio)]


def sample_motion(
    model: MotionTransformer, audio: Tensor, *, seeds: list[int], config: SamplingConfig | None = None
) -> Tensor:
    """Motion for whole recordings: stored latents float32 [B, T, D].

    Args:
        audio: features [B, T, L, F]; recordings of one length.
        seeds: one a recording. A frame's noise depends on (seed, frame number) alone.
    """
    if len(seeds) != len(audio):
        raise ValueError(f"seeds must be one a recording, {len(audio)}, got {len(seeds)}")
    engine = MotionEngine(model, max_streams=len(seeds), max_batch=len(seeds))
    streams = [engine.open(seed=seed, config=config) for seed in seeds]
    for stream, features in zip(streams, audio, strict=True):
        stream.hear(features)
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
    """One recording's motion, each piece as soon as its sound is there: stored latents float32 [n, D].

    Args:
        audio: features [n, L, F] piece by piece, in pieces of any length.
    """
    engine = MotionEngine(model, max_streams=1)
    stream = engine.open(seed=seed, config=config)
    pieces = iter(audio)
    while not stream.done:
        if not engine.step():
            piece = next(pieces, None)
            stream.end() if piece is None else stream.hear(piece)
        elif len(z := stream.take()):
            stream.played = stream.made
            yield z
