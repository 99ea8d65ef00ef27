"""Turn the bytes of a micro-batch into the padded arrays that the model takes."""

import sys
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from xactor_platform.data.index import BadSample, Index
from xactor_platform.data.plan import Cursor, MicroBatch
from xactor_platform.data.reading import ARRAYS, Raw, Request, make_request, read_raw


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Hold a micro-batch of B samples. A sample is a range of frames of one clip. Subclasses add the frames' data."""

    keys: list[str]
    """Key of each sample's clip, [B]."""
    starts: np.ndarray
    """First frame of each sample in its clip, int64 [B]."""
    frames: np.ndarray
    """Length of each sample in frames, int64 [B]."""
    weight: np.ndarray
    """Weight of each sample in the loss, float32 [B]: 0 for bad samples and for fillers, otherwise 1. A filler only
    completes a step that has too few micro-batches (see `MicroBatch`). Samples of weight 0 hold no real data."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that were found bad when they were read."""
    cursor: Cursor | None = None
    """Position in the data of the global step that the micro-batch belongs to. `PlannedStream` sets it."""
    step_frames: int = 0
    """Number of frames of that step over all ranks, padding not counted. `PlannedStream` sets it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentBatch(Batch):
    """Hold motion latents and audio features, padded with zeros to T, the length of the longest sample."""

    motion: np.ndarray
    """Motion latents, float32 [B, T, D]."""
    audio: np.ndarray
    """Audio features, float32 [B, T, L, F]."""

    @property
    def mask(self) -> np.ndarray:
        """Return which frames are real and count in the loss, bool [B, T]."""
        inside = np.arange(self.motion.shape[1]) < self.frames[:, None]
        return inside & (self.weight[:, None] > 0)


class LatentReader:
    """Read motion latents and audio features. This is a `Reader` for `xactor_platform.data.stream.PlannedStream`."""

    def __init__(self, index: Index):
        self.index, self._arena, self._shape = index, Arena(), index.frame_shape
        self.bytes_per_frame = self._shape.bytes_per_frame
        self.read = partial(read_raw, index.location, self._shape)

    def request(self, micro_batch: MicroBatch, *, step: int = 0, epoch: int | str = 0) -> Request:
        """Return what to read for a micro-batch. `step` and `epoch` are ignored; only readers of videos use them."""
        return make_request(self.index, micro_batch)

    def batch(self, request: Request, raw: Raw) -> LatentBatch:
        """Pad a micro-batch's bytes into float32 arrays."""
        motion, audio = (
            _pad(raw.arrays[name].view(dtype), request.frames, frame_shape, self._arena)
            for name, (dtype, frame_shape) in zip(ARRAYS, self._shape.members, strict=True)
        )
        weight, bad = weigh_samples(request.keys, request.shards, raw)
        return LatentBatch(
            keys=request.keys,
            starts=request.starts,
            frames=request.frames,
            weight=weight,
            bad=bad,
            motion=motion,
            audio=audio,
        )


class Arena:
    """Give out float32 arrays, and reuse the memory of an array after its last reference is gone.

    The page faults of a new large array take ten times as long as the conversion that fills it. An array, a view or a
    tensor references its buffer while it lives. So a buffer that only the arena references is free.
    """

    # A free buffer has three references: the list, the loop variable and the argument of getrefcount.
    _FREE_REFERENCES = 3

    def __init__(self):
        self._buffers: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised array of the given shape."""
        size = int(np.prod(shape))
        for buffer in self._buffers:
            if buffer.size >= size and sys.getrefcount(buffer) == self._FREE_REFERENCES:
                return buffer[:size].reshape(shape)
        # All free buffers are too small. Drop them, so that their memory is released.
        self._buffers = [b for b in self._buffers if sys.getrefcount(b) > self._FREE_REFERENCES]
        buffer = np.empty(size, np.float32)
        self._buffers.append(buffer)
        return buffer[:size].reshape(shape)


def read_batch(index: Index, micro_batch: MicroBatch) -> LatentBatch:
    """Read one micro-batch in this process, without Ray. Evaluation and tests use this.

    The result equals a batch of `PlannedStream`, except that `cursor` and `step_frames` are not set.
    """
    reader = LatentReader(index)
    request = reader.request(micro_batch)
    return reader.batch(request, reader.read([request])[0])


def weigh_samples(keys: list[str], shards: list[str], raw: Raw) -> tuple[np.ndarray, list[BadSample]]:
    """Return the samples' weights, float32 [B], and the bad samples. All weights are 0 without `shards`: a filler."""
    weight = np.full(len(keys), 1.0 if shards else 0.0, np.float32)
    weight[[place for place, _ in raw.bad]] = 0.0
    return weight, [BadSample(keys[place], shards[place], reason) for place, reason in raw.bad]


def _pad(data: np.ndarray, frames: np.ndarray, frame_shape: tuple[int, ...], arena: Arena) -> np.ndarray:
    """Copy concatenated samples [sum of frames, *frame_shape] to float32 [B, T, *frame_shape], padded with zeros."""
    # torch converts float16 nine times as fast as numpy. It is imported here, because processes that only read shards
    # do not need it.
    import torch

    padded = arena.take((len(frames), int(frames.max()), *frame_shape))
    # No bytes were read for a filler.
    if not data.size:
        padded[:] = 0
        return padded
    concatenated, begin = data.reshape(-1, *frame_shape), 0
    for row, length in zip(padded, frames.tolist(), strict=True):
        torch.from_numpy(row[:length]).copy_(torch.from_numpy(concatenated[begin : begin + length]))
        row[length:] = 0
        begin += length
    return padded
