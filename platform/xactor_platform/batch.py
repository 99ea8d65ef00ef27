"""A micro-batch as the model takes it: padded arrays."""

import sys
from dataclasses import dataclass, field

import numpy as np

from xactor_platform.index import BadSample, CorpusShape, Index
from xactor_platform.plan import Cursor, MicroBatch
from xactor_platform.reading import Raw, Request, make_request, read_raw


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch, zero where padded. B samples, T frames of the longest.

    A sample of weight 0 (a filler's, or one found bad when it was read) is all zeros and must not count.
    """

    motion: np.ndarray  # float32 [B, T, D]
    audio: np.ndarray  # float32 [B, T, L, F]
    frames: np.ndarray  # int64 [B]
    starts: np.ndarray  # int64 [B], first frame in the clip
    weight: np.ndarray  # float32 [B], 1 or 0
    keys: list[str]  # [B]
    bad: list[BadSample] = field(default_factory=list)
    cursor: Cursor | None = None  # the global step it belongs to
    step_frames: int = 0  # real frames of that step over all ranks

    @property
    def mask(self) -> np.ndarray:
        """Bool [B, T]: frames that exist and count."""
        inside = np.arange(self.motion.shape[1]) < self.frames[:, None]
        return inside & (self.weight[:, None] > 0)


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


def read_batch(index: Index, micro_batch: MicroBatch) -> Batch:
    """Reads one micro-batch here and now: what the stream does, for evaluation and tests."""
    shape = index.frame_shape
    request = make_request(index, micro_batch)
    return make_batch(request, read_raw(index.location, shape, [request])[0], shape, Arena())


def make_batch(
    request: Request,
    raw: Raw,
    shape: CorpusShape,
    arena: Arena,
    *,
    cursor: Cursor | None = None,
    step_frames: int = 0,
) -> Batch:
    """Pads a micro-batch's bytes into float32 arrays."""
    weight = np.full(len(request.keys), 1.0 if request.shards else 0.0, np.float32)
    weight[[place for place, _ in raw.bad]] = 0.0
    motion, audio = (
        _pad(data.view(dtype), request.frames, item, arena)
        for data, (dtype, item) in zip((raw.motion, raw.audio), shape.members, strict=True)
    )
    return Batch(
        motion=motion,
        audio=audio,
        frames=request.frames,
        starts=request.starts,
        weight=weight,
        keys=request.keys,
        bad=[BadSample(request.keys[place], request.shards[place], reason) for place, reason in raw.bad],
        cursor=cursor,
        step_frames=step_frames,
    )


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
