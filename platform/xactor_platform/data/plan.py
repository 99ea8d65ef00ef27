"""The plan: from (lengths, seed, epoch) to the epoch's order, the same for any number of ranks.

Shards are shuffled, then cut into windows of a few shards; inside a window, clips are tiled to the context,
grouped by length into micro-batches, and the micro-batches shuffled. Every M of them make a global step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How an epoch is cut.

    Args:
        seed: decides the order together with the epoch.
        micro_batches: M, of one global step, over all ranks.
        budget_frames: most frames of one micro-batch, padding included.
        context_frames: longest sample; a longer clip is tiled.
        shuffle_shards: how many shards are shuffled together. More mixes better, fewer reads more locally.
        whole: samples of exactly context_frames only, as many as fit into a clip, at a random place; what is left of
            the clip sits this epoch out. For models that take no padding.
    """

    seed: int = 0
    micro_batches: int = 16
    budget_frames: int = 4096
    context_frames: int = 512
    shuffle_shards: int = 16
    whole: bool = False

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        for name in ("micro_batches", "context_frames", "shuffle_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.budget_frames < self.context_frames:
            raise ValueError(
                f"budget_frames must be >= context_frames ({self.context_frames}), got {self.budget_frames}"
            )

    @property
    def allowed_ranks(self) -> list[int]:
        """The numbers of ranks that share the M micro-batches equally."""
        return [n for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]

    def check_ranks(self, ranks: int) -> None:
        """ValueError where so many ranks cannot share the M micro-batches equally."""
        if ranks not in self.allowed_ranks:
            names = ", ".join(map(str, self.allowed_ranks))
            raise ValueError(
                f"ranks must divide micro_batches ({self.micro_batches}): one of {names}; got {ranks}"
            )


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples that one forward pass takes together. Arrays are [B].

    A filler evens a short last step out: it repeats one short sample at weight 0, so that every rank has the
    same number of backwards.
    """

    row: np.ndarray  # int64, into the index
    start: np.ndarray  # int64, first frame
    frames: np.ndarray  # int64
    is_filler: bool = False

    @property
    def weight(self) -> float:
        return 0.0 if self.is_filler else 1.0

    @property
    def padded_frames(self) -> int:
        return len(self.frames) * int(self.frames.max())


@dataclass(frozen=True, order=True)
class Cursor:
    """The next global step to train: what a checkpoint keeps of the data."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch's order. `row`, `start`, `frames` are [samples]; micro-batch i is `edges[i]:edges[i + 1]`."""

    config: PlanConfig
    epoch: int
    row: np.ndarray  # int64
    start: np.ndarray  # int64
    frames: np.ndarray  # int64
    edges: np.ndarray  # int64 [micro-batches + 1]

    @property
    def micro_batches(self) -> int:
        """The real ones, fillers not counted."""
        return len(self.edges) - 1

    @property
    def steps(self) -> int:
        return -(-self.micro_batches // self.config.micro_batches)

    @property
    def padding(self) -> float:
        """The share of padded frames that are padding."""
        longest = np.maximum.reduceat(self.frames, self.edges[:-1])
        return 1 - float(self.frames.sum()) / float((longest * np.diff(self.edges)).sum())

    def step(self, number: int) -> list[MicroBatch]:
        """The M micro-batches of a global step."""
        first, end = self._bounds(number)
        real = [self._micro_batch(i) for i in range(first, end)]
        short = self.config.micro_batches - len(real)
        return real + [self._filler(first, end)] * short

    def step_frames(self, number: int) -> int:
        """Real frames of a global step over all ranks: what its loss is divided by."""
        first, end = self._bounds(number)
        return int(self.frames[self.edges[first] : self.edges[end]].sum())

    def _bounds(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self.steps:
            raise IndexError(f"step must be in 0..{self.steps - 1}, got {number}")
        size = self.config.micro_batches
        return number * size, min((number + 1) * size, self.micro_batches)

    def _micro_batch(self, i: int) -> MicroBatch:
        part = slice(self.edges[i], self.edges[i + 1])
        return MicroBatch(self.row[part], self.start[part], self.frames[part])

    def _filler(self, first: int, end: int) -> MicroBatch:
        low, high = self.edges[first], self.edges[end]
        at = low + int(self.frames[low:high].argmin())
        part = slice(at, at + 1)
        return MicroBatch(self.row[part], self.start[part], self.frames[part], is_filler=True)


def plan_epoch(frames: np.ndarray, shard: np.ndarray, config: PlanConfig, epoch: int) -> EpochPlan:
    """The plan of one epoch.

    Every frame of every clip is in exactly one sample of the epoch, with `whole` in at most one. Depends on nothing
    but its arguments.

    Args:
        frames: int [clips], their lengths.
        shard: int [clips], the shard that holds each.

    Raises:
        ValueError: no clips, a clip without frames, or with `whole` none that is long enough.
    """
    frames, shard = np.asarray(frames, dtype=np.int64), np.asarray(shard, dtype=np.int64)
    if not len(frames):
        raise ValueError(
            "there is nothing to train on: the corpus has no samples outside its held-out shards"
        )
    if frames.shape != shard.shape:
        raise ValueError(f"frames and shard must be of one length, got {frames.shape} and {shard.shape}")
    if frames.min() < 1:
        raise ValueError(f"a clip must have >= 1 frames, got {frames.min()} in row {frames.argmin()}")
    if epoch < 0:
        raise ValueError(f"epoch must be >= 0, got {epoch}")
    generator = np.random.Generator(np.random.PCG64([config.seed, epoch]))
    names, shard = np.unique(shard, return_inverse=True)
    window = generator.permutation(len(names))[shard] // config.shuffle_shards
    tile = _tile_whole if config.whole else _tile
    clip, start, length = tile(frames, config.context_frames, generator)
    if not len(clip):
        raise ValueError(f"no clip has {config.context_frames} frames, the longest has {frames.max()}")
    # Inside a window: longest first, those of one length in random order, so that batches differ by epoch.
    order = np.lexsort((generator.random(len(clip)), -length, window[clip]))
    clip, start, length = clip[order], start[order], length[order]
    edges, batch_window = _cut(length, window[clip], config.budget_frames)
    # Micro-batches of a window in random order, so that a step mixes lengths.
    shuffled = np.lexsort((generator.random(len(batch_window)), batch_window))
    sizes = np.diff(edges)[shuffled]
    new_edges = np.concatenate([[0], np.cumsum(sizes)])
    # Where each sample comes from: its batch's old beginning plus its place in the batch.
    source = np.repeat(edges[:-1][shuffled] - new_edges[:-1], sizes) + np.arange(len(clip))
    return EpochPlan(config, epoch, clip[source], start[source], length[source], new_edges)


def _tile(
    frames: np.ndarray, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts clips longer than the context at a grid with a random origin.

    Returns clip, start and length, each [samples].
    """
    offset = generator.integers(0, context, len(frames))  # of the grid's first line
    offset[frames <= context] = 0
    pieces = (offset > 0) + -(-(frames - offset) // context)
    clip = np.repeat(np.arange(len(frames)), pieces)
    number = np.arange(len(clip)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    lines = (number - (offset > 0)[clip]) * context + offset[clip]
    start, end = np.maximum(lines, 0), np.minimum(lines + context, frames[clip])
    return clip, start, end - start


def _tile_whole(
    frames: np.ndarray, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As many samples of the context's length as fit, one after another from a random frame on."""
    pieces = frames // context
    offset = generator.integers(0, frames - pieces * context + 1)
    clip = np.repeat(np.arange(len(frames)), pieces)
    number = np.arange(len(clip)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return clip, offset[clip] + number * context, np.full(len(clip), context)


def _cut(length: np.ndarray, window: np.ndarray, budget_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts samples, sorted longest first in each window, into micro-batches.

    Returns edges [micro-batches + 1] and the window of each micro-batch.
    """
    ends = np.append(np.flatnonzero(np.diff(window)) + 1, len(window)).tolist()
    longest = length.tolist()
    edges, windows, at = [0], [], 0
    for number, end in enumerate(ends):
        while at < end:
            at = min(at + budget_frames // longest[at], end)
            edges.append(at)
            windows.append(number)
    return np.array(edges), np.array(windows)


def rank_micro_batches(step: Sequence[MicroBatch], rank: int, ranks: int) -> list[MicroBatch]:
    """What one rank trains of a step, a micro-batch a turn.

    Turn j of rank r takes number j * ranks + r by falling cost, so those that meet in one turn's reduction
    cost about the same.
    """
    if not 0 <= rank < ranks or len(step) % ranks:
        raise ValueError(
            f"rank must be in 0..{ranks - 1} and ranks divide {len(step)}, got {rank} of {ranks}"
        )
    cost = [(batch.padded_frames, int(batch.frames.max()), not batch.is_filler) for batch in step]
    order = sorted(range(len(step)), key=lambda i: cost[i], reverse=True)
    return [step[i] for i in order[rank::ranks]]


@dataclass(frozen=True, eq=False)
class Step:
    """A global step and where it stands."""

    cursor: Cursor
    micro_batches: list[MicroBatch]
    frames: int  # real ones over all ranks
    padding: float
    following: Cursor  # what a checkpoint made after this step keeps


def walk(frames: np.ndarray, shard: np.ndarray, config: PlanConfig, start: Cursor) -> Iterator[Step]:
    """The global steps from a cursor on, epoch after epoch without end."""
    step = start.step
    for epoch in range(start.epoch, np.iinfo(np.int64).max):
        plan = plan_epoch(frames, shard, config, epoch)
        if step >= plan.steps:
            raise ValueError(f"the cursor's step must be < {plan.steps} in epoch {epoch}, got {step}")
        for number in range(step, plan.steps):
            batches = plan.step(number)
            real = plan.step_frames(number)
            padded = sum(b.padded_frames for b in batches if not b.is_filler)
            last = number + 1 == plan.steps
            following = Cursor(epoch + 1, 0) if last else Cursor(epoch, number + 1)
            yield Step(Cursor(epoch, number), batches, real, 1 - real / padded, following)
        step = 0
