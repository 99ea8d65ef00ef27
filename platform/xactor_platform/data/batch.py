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
    """Hold a micro-batch of B samples, each (key, start, frames)."""

    keys: list[str]
    """Keys of the clips, [B]."""
    starts: np.ndarray
    """First frame of each sample in its clip, int64 [B]."""
    frames: np.ndarray
    """Length of each sample, int64 [B]."""
    weight: np.ndarray
    """1 or 0, float32 [B]. A filler and a sample that was found bad are all zeros and must not count."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that could not be used when they were read."""
    cursor: Cursor | None = None
    """The global step that the micro-batch belongs to."""
    step_frames: int = 0
    """Real frames of that step over all ranks."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentBatch(Batch):
    """Hold latents and audio features, zero where padded. T is the longest sample's length."""

    motion: np.ndarray
    """Latents, float32 [B, T, D]."""
    audio: np.ndarray
    """Audio features, float32 [B, T, L, F]."""

    @property
    def mask(self) -> np.ndarray:
        """Return which frames exist and count, bool [B, T]."""
        inside = np.arange(self.motion.shape[1]) < self.frames[:, None]
        return inside & (self.weight[:, None] > 0)


class LatentReader:
    """Read latents and audio features for a stream."""

    def __init__(self, index: Index):
        self.index, self._arena, self._shape = index, Arena(), index.frame_shape
        self.bytes_per_frame = self._shape.bytes_per_frame
        self.read = partial(read_raw, index.location, self._shape)

    def request(self, micro_batch: MicroBatch, *, step: int = 0, epoch: int | str = 0) -> Request:
        """Return what to read for a micro-batch. It depends neither on the step nor on the epoch."""
        return make_request(self.index, micro_batch)

    def batch(self, request: Request, raw: Raw) -> LatentBatch:
        """Pad a micro-batch's bytes into float32 arrays."""
        motion, audio = (
            _pad(raw.arrays[name].view(dtype), request.frames, item, self._arena)
            for name, (dtype, item) in zip(ARRAYS, self._shape.members, strict=True)
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
    """Reuse float32 memory once nobody holds an array that was made from it.

    The page faults of a fresh large array cost ten times the conversion that fills it. An array, a view or a tensor
    keeps its buffer referenced while it lives. So a buffer that only the arena references is free.
    """

    # References to a free buffer: the list's, the loop variable's and that of getrefcount's argument.
    _ONLY_HERE = 3

    def __init__(self):
        self._buffers: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised array of the given shape."""
        size = int(np.prod(shape))
        for buffer in self._buffers:
            if buffer.size >= size and sys.getrefcount(buffer) == self._ONLY_HERE:
                return buffer[:size].reshape(shape)
        self._buffers = [b for b in self._buffers if sys.getrefcount(b) > self._ONLY_HERE]
        buffer = np.empty(size, np.float32)
        self._buffers.append(buffer)
        return buffer[:size].reshape(shape)


def read_batch(index: Index, micro_batch: MicroBatch) -> LatentBatch:
    """Read one micro-batch in this process, as the stream does. For evaluation and tests."""
    reader = LatentReader(index)
    request = reader.request(micro_batch)
    return reader.batch(request, reader.read([request])[0])


def weigh_samples(keys: list[str], shards: list[str], raw: Raw) -> tuple[np.ndarray, list[BadSample]]:
    """Return the samples' weights, float32 [B], and the bad samples. A filler names no shards and weighs 0."""
    weight = np.full(len(keys), 1.0 if shards else 0.0, np.float32)
    weight[[place for place, _ in raw.bad]] = 0.0
    return weight, [BadSample(keys[place], shards[place], reason) for place, reason in raw.bad]


def _pad(data: np.ndarray, frames: np.ndarray, item: tuple[int, ...], arena: Arena) -> np.ndarray:
    """Copy concatenated samples [sum of frames, *item] to float32 [B, T, *item], zero past the end of each."""
    # Its float16 conversion is nine times as fast as numpy's. Processes that only read shards never import it.
    import torch

    padded = arena.take((len(frames), int(frames.max()), *item))
    if not data.size:
        padded[:] = 0
        return padded
    flat, at = data.reshape(-1, *item), 0
    for row, n in zip(padded, frames.tolist(), strict=True):
        torch.from_numpy(row[:n]).copy_(torch.from_numpy(flat[at : at + n]))
        row[n:] = 0
        at += n
    return padded
