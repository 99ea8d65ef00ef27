"""Define a stream of motion: audio features come in, motion latents come out chunk by chunk (Paper 3.3.1).

A chunk is a number of frames that are denoised together. Its history is the frames before it that the model sees, with
noise added.

A stream never runs the transformer. The engine (engine.py) asks it for the input of the next forward pass and gives it
the result, so that the engine can put several streams into one pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xactor.motion.noise_levels import MAX_LEVEL
from xactor.motion.sampling_config import SamplingConfig
from xactor.motion.sampling_plan import sampling_plan
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer
from xactor.randomness import frame_noise


@dataclass(frozen=True)
class HistoryInput:
    """Hold the input of the forward pass over a chunk's noised history of H frames."""

    z_k: Tensor
    """Noised latents, standardised, [H, D]."""
    levels: Tensor
    """Their noise levels, [H]."""
    audio: Tensor
    """Audio embeddings of these frames and of w frames on either side, [H + 2w, A]; w is the model's audio_window."""
    audio_real: Tensor
    """bool [H + 2w], False before the recording's start and past its end."""


@dataclass(frozen=True)
class StepInput:
    """Hold the input of one DDIM step of a chunk.

    The step changes only the chunk's first n frames, whose noise levels have begun to fall: the moving frames.
    """

    z_k: Tensor
    """Noised latents, standardised, [n, D]."""
    levels: Tensor
    """Their noise levels before the step, [n], on the CPU."""
    next_levels: Tensor
    """Their noise levels after the step, [n], on the CPU."""
    audio: Tensor
    """Audio embeddings of these frames and of w frames on either side, [n + 2w, A]; w is the model's audio_window."""
    audio_real: Tensor
    """bool [n + 2w], False before the recording's start and past its end."""
    history_frames: int
    """Length of the history that the chunk continues, in frames."""


class MotionStream:
    """Generate the motion of one recording, frame after frame. `MotionEngine.open` makes a stream.

    Callers use `feed`, `end`, `take`, `close` and the attributes. The methods from `begin_chunk` on are for the
    engine. The memory of a stream does not grow with its length.
    """

    made: int
    """Number of frames made so far, counted from the recording's start. It is also the number of the next frame."""
    played: int
    """Number of frames that the viewer has seen, counted from the recording's start. The stream's owner must keep it up
    to date, because the engine first steps the stream with the smallest playback buffer, `made` - `played`, and pauses
    a stream that is far ahead of its viewer."""
    chunk_frames: int
    """Length of a chunk in frames."""
    error: Exception | None
    """The error that stopped the stream, or None."""

    def __init__(
        self,
        model: MotionTransformer,
        *,
        seed: int,
        config: SamplingConfig,
        first_frame: int,
        history: Tensor | None,
    ):
        """Start a stream at `first_frame`. The arguments are those of `MotionEngine.open`."""
        self.seed, self.config = seed, config
        self.made = self.played = first_frame
        self.error = None
        self.is_open = True
        self._model = model
        self.chunk_frames = config.chunk_frames or model.config.chunk_frames
        # For each row of the sampling plan, the number of frames in a full chunk whose noise levels have begun to fall.
        # They do not depend on the history, so its length is 0 here and its capacity is arbitrary.
        plan = sampling_plan(0, self.chunk_frames, 1, config)
        self._moving_frames = (plan < MAX_LEVEL).sum(1).tolist()
        # Audio features [n, L, F] of the frames from `_audio_first` on.
        self._audio = torch.zeros(0, model.config.audio_layers, model.config.audio_dim)
        self._audio_first = model.config.first_audio_frame(first_frame)
        self._audio_ended = False
        # Standardised latents [H, D] of the frames before the chunk.
        self._history = torch.zeros(0, model.config.latent_dim, device=model.device)
        if history is not None:
            self._history = model.standardise(history.to(model.device))[-model.config.history_frames :]
        # Number of the first frame of the chunk that is being denoised, or of the next chunk.
        self._chunk_first = first_frame
        self._chunk: _Chunk | None = None
        # Latents that are made and not yet taken, in order.
        self._ready: list[Tensor] = []

    def feed(self, features: Tensor) -> None:
        """Add the audio features of the next frames, [n, L, F], in pieces of any length.

        Raises:
            ValueError: The shape is wrong, a number is not finite, or the audio has ended. The stream is unchanged.
        """
        config = self._model.config
        wanted = (config.audio_layers, config.audio_dim)
        if features.dim() != 3 or tuple(features.shape[1:]) != wanted:
            raise ValueError(
                f"audio features must be [n, {wanted[0]}, {wanted[1]}], got {list(features.shape)}"
            )
        if self._audio_ended:
            raise ValueError(f"audio must not follow the stream's end, which is at frame {self._audio_stop}")
        if not torch.isfinite(features).all():
            raise ValueError(
                f"audio features must be finite, got NaN or infinite numbers from frame {self._audio_stop} on"
            )
        self._audio = torch.cat([self._audio, features.cpu()])

    def end(self) -> None:
        """Declare that no more audio will follow.

        Raises:
            ValueError: There was no audio at all, or the audio ends before the frame at which the stream continues.
        """
        if self._audio_stop == 0:
            raise ValueError("the stream is empty: it must be fed audio before it ends")
        if self._audio_stop < self._chunk_first:
            raise ValueError(
                f"the audio must reach frame {self._chunk_first}, where the stream continues, "
                f"it ends at frame {self._audio_stop}"
            )
        self._audio_ended = True
        if self._chunk is None and self._chunk_first == self._audio_stop:
            self.close()

    def take(self) -> Tensor:
        """Return the motion made since the last call: latents as files store them, not standardised, float32 [n, D].

        n may be 0.

        Raises:
            ValueError: The stream failed, and all motion from before the failure has been taken.
        """
        if not self._ready and self.error is not None:
            raise self.error
        taken, self._ready = self._ready, []
        return torch.cat([torch.zeros(0, self._model.config.latent_dim, device=self._model.device), *taken])

    def close(self) -> None:
        """Close the stream. The engine removes a closed stream before the engine's next step."""
        self.is_open = False

    @property
    def done(self) -> bool:
        """Return whether the stream is closed, did not fail, and all its motion has been taken."""
        return not self.is_open and not self._ready and self.error is None

    @property
    def needs_audio(self) -> bool:
        """Return whether the next DDIM step needs more audio than has been fed."""
        row = 0 if self._chunk is None else self._chunk.row
        needed = self._chunk_first + self._moving_frames[row + 1] + self._model.config.audio_window
        return not self._audio_ended and self._audio_stop < needed

    @property
    def needs_history_pass(self) -> bool:
        """Return whether a chunk has begun whose history is not yet in the engine's cache."""
        return self._chunk is not None and not self._chunk.history_cached

    def begin_chunk(self) -> None:
        """Begin the next chunk, unless a chunk is being denoised."""
        if self._chunk is not None:
            return
        history, size = len(self._history), self.chunk_frames
        plan = sampling_plan(history, size, self._model.config.history_frames, self.config)
        z_k = frame_noise(self.seed, "chunk", self._chunk_first, size, self._history.shape[1])
        self._chunk = _Chunk(
            history_levels=plan[0, :history],
            levels=plan[:, history:],
            z_k=z_k.to(self._history),
            history_cached=history == 0,
        )

    def history_input(self) -> HistoryInput:
        """Return the input of the pass over the history. Its noise levels are those at which this chunk sees it."""
        assert self._chunk is not None
        frames = len(self._history)
        first = self._chunk_first - frames
        eps = frame_noise(self.seed, "history", first, frames, self._history.shape[1]).to(self._history)
        levels = self._chunk.history_levels.to(eps.device)
        z_k = MotionScheduler().add_noise(self._history[None], eps[None], levels[None])[0]
        audio, audio_real = self._embed_audio(first, self._chunk_first)
        return HistoryInput(z_k=z_k, levels=levels, audio=audio, audio_real=audio_real)

    def history_cached(self) -> None:
        """Record that the history's keys and values are in the engine's cache. All steps of this chunk read them."""
        assert self._chunk is not None
        self._chunk.history_cached = True

    def step_input(self) -> StepInput:
        """Return the input of the chunk's next DDIM step."""
        chunk = self._chunk
        assert chunk is not None
        moving = self._moving_frames[chunk.row + 1]
        if self._audio_ended:
            moving = min(moving, self._audio_stop - self._chunk_first)
        # Steps with the same number of moving frames share the audio embeddings.
        if chunk.audio is None or len(chunk.audio[0]) != moving + 2 * self._model.config.audio_window:
            chunk.audio = self._embed_audio(self._chunk_first, self._chunk_first + moving)
        return StepInput(
            z_k=chunk.z_k[:moving],
            levels=chunk.levels[chunk.row, :moving],
            next_levels=chunk.levels[chunk.row + 1, :moving],
            audio=chunk.audio[0],
            audio_real=chunk.audio[1],
            history_frames=len(self._history),
        )

    def advance(self, z_k: Tensor) -> None:
        """Store the result of a DDIM step, and make the frames that are now clean available to `take`.

        Latents that are not finite stop the stream and set `error`.

        Args:
            z_k: The moving frames after the step, standardised, [n, D].
        """
        chunk = self._chunk
        assert chunk is not None
        chunk.z_k[: len(z_k)] = z_k
        chunk.row += 1
        clean = min(int((chunk.levels[chunk.row] == 0).sum()), len(z_k))
        if clean > chunk.clean:
            z = chunk.z_k[chunk.clean : clean]
            if not torch.isfinite(z).all():
                self.error = ValueError(f"the motion model made NaN or infinite latents at frame {self.made}")
                self.close()
                return
            self._ready.append(self._model.destandardise(z))
            self.made += len(z)
            chunk.clean = clean
        frames = len(chunk.z_k)
        if self._audio_ended:
            frames = min(frames, self._audio_stop - self._chunk_first)
        if clean == frames:
            self._finish_chunk(chunk.z_k[:clean])

    @property
    def _audio_stop(self) -> int:
        """Return the number of the frame after the last one whose features have been fed."""
        return self._audio_first + len(self._audio)

    def _embed_audio(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Embed the audio of n = last - first frames from `first` on, and of w frames on either side.

        Returns:
            The embeddings [n + 2w, A], and bool [n + 2w], False before the recording's start and past its end.
        """
        # Embed the audio here and not in `feed`, whose pieces may have any length: rounding depends on which frames are
        # embedded together.
        window, device = self._model.config.audio_window, self._model.device
        frame = torch.arange(first - window, last + window)
        real = (frame >= 0) & (frame < self._audio_stop)
        features = self._audio[(frame - self._audio_first).clamp(0, len(self._audio) - 1)]
        return self._model.embed_audio(features.to(device)[None])[0], real.to(device)

    def _finish_chunk(self, z: Tensor) -> None:
        """Append the clean chunk [n, D] to the history, and drop audio that no later chunk needs."""
        capacity, window = self._model.config.history_frames, self._model.config.audio_window
        self._history = torch.cat([self._history, z])[-capacity:]
        self._chunk_first += len(z)
        self._chunk = None
        # Later chunks need the audio from this frame on.
        needed = max(self._chunk_first - len(self._history) - window, 0)
        self._audio, self._audio_first = self._audio[needed - self._audio_first :].clone(), needed
        if self._audio_ended and self._chunk_first >= self._audio_stop:
            self.close()


@dataclass
class _Chunk:
    """Hold the chunk that is being denoised."""

    history_levels: Tensor
    """Noise levels of the history, [H]."""
    levels: Tensor
    """Noise levels of the chunk's frames in each row of the plan, [rows, n]."""
    z_k: Tensor
    """The chunk's latents, standardised, [n, D], with the noise levels of row `row`."""
    history_cached: bool
    """Whether the history's keys and values are in the cache."""
    row: int = 0
    """Row of the plan that the chunk has reached, which is the number of steps done."""
    clean: int = 0
    """Number of the chunk's frames that are clean."""
    audio: tuple[Tensor, Tensor] | None = None
    """Result of `_embed_audio` for the moving frames, or None before the first step."""
