"""A micro-batch as the model takes it: padded arrays."""

import sys
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from xactor_platform.data.index import BadSample, Index
from xactor_platform.data.plan import Cursor, MicroBatch
from xactor_platform.data.reading import PARTS, Raw, Request, make_request, read_raw


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """A micro-batch of B samples, each (key, start, frames).

    A sample of weight 0 (a filler's, or one found bad when it was read) is all zeros and must not count.
    """

    keys: list[str]  # [B]
    starts: np.ndarray  # int64 [B], first frame in the clip
    frames: np.ndarray  # int64 [B]
    weight: np.ndarray  # float32 [B], 1 or 0
    bad: list[BadSample] = field(default_factory=list)
    cursor: Cursor | None = None  # the global step it belongs to
    step_frames: int = 0  # real frames of that step over all ranks


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentBatch(Batch):
    """Latents and audio features, zero where padded. T frames of the longest."""

    motion: np.ndarray  # float32 [B, T, D]
    audio: np.ndarray  # float32 [B, T, L, F]

    @property
    def mask(self) -> np.ndarray:
        """Bool [B, T]: frames that exist and count."""
        inside = np.arange(self.motion.shape[1]) < self.frames[:, None]
        return inside & (self.weight[:, None] > 0)


class LatentReader:
    """Reads latents and audio features for a stream."""

    def __init__(self, index: Index):
        self.index, self._arena, self._shape = index, Arena(), index.frame_shape
        self.bytes_per_frame = self._shape.bytes_per_frame
        self.read = partial(read_raw, index.location, self._shape)

    def request(self, micro_batch: MicroBatch, *, step: int = 0, epoch: int | str = 0) -> Request:
        return make_request(self.index, micro_batch)

    def batch(self, request: Request, raw: Raw) -> LatentBatch:
        """Pads a micro-batch's bytes into float32 arrays."""
        motion, audio = (
            _pad(raw.parts[name].view(dtype), request.frames, item, self._arena)
            for name, (dtype, item) in zip(PARTS, self._shape.members, strict=True)
        )
        weight, bad = judge(request.keys, request.shards, raw)
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
    """Float32 memory that is used again once nobody holds an array made from it.

    A fresh large array costs its page faults, ten times the conversion that fills it. An array keeps its
    buffer referenced for as long as it, a view or a tensor made from it lives: so a buffer that only the
    arena references is free.
    """

    _ONLY_HERE = 3  # the list's reference, the loop variable's and getrefcount's own

    def __init__(self):
        self._buffers: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of that shape with any content."""
        size = int(np.prod(shape))
        for buffer in self._buffers:
            if buffer.size >= size and sys.getrefcount(buffer) == self._ONLY_HERE:
                return buffer[:size].reshape(shape)
        self._buffers = [b for b in self._buffers if sys.getrefcount(b) > self._ONLY_HERE]
        buffer = np.empty(size, np.float32)
        self._buffers.append(buffer)
        return buffer[:size].reshape(shape)


def read_batch(index: Index, micro_batch: MicroBatch) -> LatentBatch:
    """Reads one micro-batch here and now: what the stream does, for evaluation and tests."""
    reader = LatentReader(index)
    request = reader.request(micro_batch)
    return reader.batch(request, reader.read([request])[0])


def judge(keys: list[str], shards: list[str], raw: Raw) -> tuple[np.ndarray, list[BadSample]]:
    """The samples' weights, float32 [B], and those found bad. A filler, which names no shards, weighs nothing."""
    weight = np.full(len(keys), 1.0 if shards else 0.0, np.float32)
    weight[[place for place, _ in raw.bad]] = 0.0
    return weight, [BadSample(keys[place], shards[place], reason) for place, reason in raw.bad]


def _pad(data: np.ndarray, frames: np.ndarray, item: tuple[int, ...], arena: Arena) -> np.ndarray:
    """Samples [sum of frames, *item] one after another -> float32 [B, T, *item], zero past each one's end."""
    import torch  # its float16 conversion is nine times numpy's; processes that only read never load it

    padded = arena.take((len(frames), int(frames.max()), *item))
    if not data.size:
        padded[:] = 0
        return padded
    flat, at = data.reshape(-1, *item), 0
    for room, n in zip(padded, frames.tolist(), strict=True):
        torch.from_numpy(room[:n]).copy_(torch.from_numpy(flat[at : at + n]))
        room[n:] = 0
        at += n
    return padded
