"""Plan the order of the training data in an epoch.

The plan depends only on the clips' lengths and shards, the configuration with its seed, and the epoch. It is the same
for any number of ranks.

Shards are shuffled, then divided into groups of `shuffle_shards`. Within a group, clips are cut into samples of at most
`context_frames` frames, samples of similar lengths form micro-batches, and the micro-batches are shuffled. Every M
micro-batches form a global step, which is one step of the optimizer.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Configure how an epoch is divided into samples, micro-batches and steps."""

    seed: int = 0
    """Seed of the random order. The order of an epoch depends on this seed and on the number of the epoch."""
    micro_batches: int = 16
    """M, the number of micro-batches in a global step over all ranks."""
    budget_frames: int = 4096
    """Maximum number of frames in a micro-batch, padding included."""
    context_frames: int = 512
    """Maximum length of a sample. A longer clip is cut into several samples."""
    shuffle_shards: int = 16
    """Number of shards that are shuffled together. More shards mix samples better, fewer make reads more local."""
    whole: bool = False
    """Take only samples of exactly context_frames, for models that take no padding. A clip gives as many samples as
    fit, one after another from a random frame on. The rest of the clip is not used in this epoch."""

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
        """Return the numbers of ranks that divide M."""
        return [n for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]

    def check_ranks(self, ranks: int) -> None:
        """Raise ValueError if `ranks` does not divide M."""
        if ranks not in self.allowed_ranks:
            names = ", ".join(map(str, self.allowed_ranks))
            raise ValueError(
                f"ranks must divide micro_batches ({self.micro_batches}): one of {names}; got {ranks}"
            )


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Hold the samples that one forward pass takes together. Arrays are int64 [B]."""

    row: np.ndarray
    """Row of each sample's clip in the index."""
    start: np.ndarray
    """First frame of each sample in its clip."""
    frames: np.ndarray
    """Length of each sample in frames."""
    is_filler: bool = False
    """True if the micro-batch only completes the last step of an epoch, which may lack micro-batches. A filler repeats
    one short sample at weight 0, so that every rank runs the same number of backward passes."""

    @property
    def weight(self) -> float:
        """Return the weight of each sample in the loss."""
        return 0.0 if self.is_filler else 1.0

    @property
    def padded_frames(self) -> int:
        """Return the number of frames, padding included."""
        return len(self.frames) * int(self.frames.max())


@dataclass(frozen=True, order=True)
class Cursor:
    """Point at the next global step to train. A checkpoint stores it as the position in the data."""

    epoch: int = 0
    """Number of the epoch, from 0."""
    step: int = 0
    """Number of the step in the epoch, from 0."""


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Hold one epoch's order."""

    config: PlanConfig
    """Configuration that the plan was made from."""
    epoch: int
    """Number of the epoch."""
    row: np.ndarray
    """Row of each sample's clip in the index, int64 [samples]."""
    start: np.ndarray
    """First frame of each sample in its clip, int64 [samples]."""
    frames: np.ndarray
    """Length of each sample in frames, int64 [samples]."""
    edges: np.ndarray
    """Bounds of the micro-batches, int64 [micro-batches + 1]: micro-batch i is samples `edges[i]:edges[i + 1]`."""

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches in the epoch, fillers not counted."""
        return len(self.edges) - 1

    @property
    def steps(self) -> int:
        """Return the number of global steps in the epoch. The last step counts even if it needs fillers."""
        return -(-self.micro_batches // self.config.micro_batches)

    @property
    def padding(self) -> float:
        """Return the fraction of frames that are padding."""
        longest = np.maximum.reduceat(self.frames, self.edges[:-1])
        return 1 - float(self.frames.sum()) / float((longest * np.diff(self.edges)).sum())

    def step(self, number: int) -> list[MicroBatch]:
        """Return the M micro-batches of a global step, fillers at the end."""
        first, end = self._bounds(number)
        real = [self._micro_batch(i) for i in range(first, end)]
        short = self.config.micro_batches - len(real)
        return real + [self._filler(first, end)] * short

    def step_frames(self, number: int) -> int:
        """Return the number of frames of a global step over all ranks, without padding and fillers.

        The training divides the step's loss by this number.
        """
        first, end = self._bounds(number)
        return int(self.frames[self.edges[first] : self.edges[end]].sum())

    def _bounds(self, number: int) -> tuple[int, int]:
        """Return the number of a step's first micro-batch, and the number of the micro-batch after its last one."""
        if not 0 <= number < self.steps:
            raise IndexError(f"step must be in 0..{self.steps - 1}, got {number}")
        size = self.config.micro_batches
        return number * size, min((number + 1) * size, self.micro_batches)

    def _micro_batch(self, i: int) -> MicroBatch:
        samples = slice(self.edges[i], self.edges[i + 1])
        return MicroBatch(self.row[samples], self.start[samples], self.frames[samples])

    def _filler(self, first: int, end: int) -> MicroBatch:
        """Return a filler that repeats the shortest sample of the micro-batches `first` to `end` - 1."""
        first_sample, end_sample = self.edges[first], self.edges[end]
        position = first_sample + int(self.frames[first_sample:end_sample].argmin())
        shortest = slice(position, position + 1)
        return MicroBatch(self.row[shortest], self.start[shortest], self.frames[shortest], is_filler=True)


def plan_epoch(frames: np.ndarray, shard: np.ndarray, config: PlanConfig, epoch: int) -> EpochPlan:
    """Return the plan of one epoch, a pure function of the arguments.

    Every frame of every clip is in exactly one sample of the epoch, or with `whole` in at most one.

    Args:
        frames: lengths of the clips, int [clips].
        shard: number of the shard that holds each clip, int [clips].
        config: see `PlanConfig`.
        epoch: number of the epoch, from 0.

    Raises:
        ValueError: there are no clips, a clip has no frames, or with `whole` no clip is long enough. Also if `frames`
            and `shard` differ in length, or `epoch` is negative.
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
    # Every shard gets a random position, and `shuffle_shards` consecutive positions form a group.
    group = generator.permutation(len(names))[shard] // config.shuffle_shards
    tile = _tile_whole if config.whole else _tile
    clip, start, length = tile(frames, config.context_frames, generator)
    if not len(clip):
        raise ValueError(f"no clip has {config.context_frames} frames, the longest has {frames.max()}")
    # Within a group the longest samples come first. Samples of one length are in random order, so that micro-batches
    # differ from epoch to epoch.
    order = np.lexsort((generator.random(len(clip)), -length, group[clip]))
    clip, start, length = clip[order], start[order], length[order]
    edges, batch_group = _cut(length, group[clip], config.budget_frames)
    # A group's micro-batches are in random order, so that a step mixes lengths.
    shuffled = np.lexsort((generator.random(len(batch_group)), batch_group))
    sizes = np.diff(edges)[shuffled]
    new_edges = np.concatenate([[0], np.cumsum(sizes)])
    # Samples move with their micro-batch: the old position of a sample is the old beginning of its micro-batch plus its
    # position in the micro-batch.
    source = np.repeat(edges[:-1][shuffled] - new_edges[:-1], sizes) + np.arange(len(clip))
    return EpochPlan(config, epoch, clip[source], start[source], length[source], new_edges)


def _tile(
    frames: np.ndarray, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut every clip that is longer than the context at a random frame, and every `context` frames after it.

    Returns:
        the clip, the first frame and the length of each sample, each [samples].
    """
    # Frame of the first cut in each clip. The frames before it form a shorter sample. With 0 there is no such sample.
    first_cut = generator.integers(0, context, len(frames))
    first_cut[frames <= context] = 0
    # Number of samples of each clip. The quotient is rounded up.
    tiles = (first_cut > 0) + -(-(frames - first_cut) // context)
    clip = np.repeat(np.arange(len(frames)), tiles)
    # Number of each sample in its clip, from 0.
    number = np.arange(len(clip)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    cut = (number - (first_cut > 0)[clip]) * context + first_cut[clip]
    start, end = np.maximum(cut, 0), np.minimum(cut + context, frames[clip])
    return clip, start, end - start


def _tile_whole(
    frames: np.ndarray, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut as many samples of the context's length as fit into each clip, one after another from a random frame on.

    Returns:
        the clip, the first frame and the length of each sample, each [samples].
    """
    # Number of samples of each clip.
    tiles = frames // context
    offset = generator.integers(0, frames - tiles * context + 1)
    clip = np.repeat(np.arange(len(frames)), tiles)
    # Number of each sample in its clip, from 0.
    number = np.arange(len(clip)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return clip, offset[clip] + number * context, np.full(len(clip), context)


def _cut(length: np.ndarray, group: np.ndarray, budget_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples into micro-batches. Within each group the samples are sorted, the longest first.

    Returns:
        the bounds of the micro-batches [micro-batches + 1], as in `EpochPlan.edges`, and the group of each micro-batch.
    """
    group_ends = np.append(np.flatnonzero(np.diff(group)) + 1, len(group)).tolist()
    lengths = length.tolist()
    edges, groups, begin = [0], [], 0
    for number, group_end in enumerate(group_ends):
        while begin < group_end:
            # The first sample is the longest, so its length decides how many samples fit.
            begin = min(begin + budget_frames // lengths[begin], group_end)
            edges.append(begin)
            groups.append(number)
    return np.array(edges), np.array(groups)


def rank_micro_batches(step: Sequence[MicroBatch], rank: int, ranks: int) -> list[MicroBatch]:
    """Return the micro-batches of a step that one rank trains, in order. In turn j, each rank trains its j-th one.

    The micro-batches are sorted by decreasing cost, and in turn j rank r trains number j * ranks + r. So the
    micro-batches that the ranks train in the same turn cost about the same. Therefore no rank waits long for the others
    in the gradient reduction that ends the turn.
    """
    if not 0 <= rank < ranks or len(step) % ranks:
        raise ValueError(
            f"rank must be in 0..{ranks - 1} and ranks divide {len(step)}, got {rank} of {ranks}"
        )
    # Among micro-batches with equal numbers of frames, fillers come last.
    cost = [(batch.padded_frames, int(batch.frames.max()), not batch.is_filler) for batch in step]
    order = sorted(range(len(step)), key=lambda i: cost[i], reverse=True)
    return [step[i] for i in order[rank::ranks]]


@dataclass(frozen=True, eq=False)
class Step:
    """Hold a global step and its position in the data."""

    cursor: Cursor
    """Position of this step."""
    micro_batches: list[MicroBatch]
    """The M micro-batches, fillers included."""
    frames: int
    """Number of frames over all ranks, without padding and fillers."""
    padding: float
    """Fraction of frames that are padding, fillers not counted."""
    following: Cursor
    """Position of the next step. A checkpoint made after this step stores it."""


def planned_steps(frames: np.ndarray, shard: np.ndarray, config: PlanConfig, start: Cursor) -> Iterator[Step]:
    """Yield the global steps from a cursor on, epoch after epoch without end.

    Args:
        frames: see `plan_epoch`.
        shard: see `plan_epoch`.
        config: see `PlanConfig`.
        start: position of the first step.

    Raises:
        ValueError: see `plan_epoch`, or `start` lies after the last step of its epoch.
    """
    step = start.step
    for epoch in itertools.count(start.epoch):
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
