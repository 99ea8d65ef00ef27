"""Configure a training run: frozen dataclasses, from which tyro builds the command line.

This module and the two stages' configs import no torch, so that the command line is parsed without delay.
"""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from xactor_platform.data.plan import PlanConfig
from xactor_platform.storage.location import absolute

if TYPE_CHECKING:
    from xactor_platform.data.index import Index
    from xactor_platform.training.training_stage import TrainingStage

Facts = dict[str, Any]
"""Facts about the corpus, by name. The driver finds them out for all ranks, and saves them in the run's config.json."""

RESUMABLE = (
    "run.",
    "scale.",
    # A corpus may have moved, or be named by another spelling of its path. Its content is compared instead.
    "data.shards",
    "data.features",
    "train.steps",
    "train.evaluate",
    "train.checkpoint",
    "train.keep",
    "train.max_skipped",
    "train.loss_spike",
    "train.sheet",
    "train.log_samples",
    "train.tensorboard",
)
"""Prefixes of the names of options that may change when a run is resumed."""


def at_least(owner: object, low: float, *names: str) -> None:
    """Raise ValueError if one of the named fields of `owner` is less than `low`."""
    for name in names:
        if getattr(owner, name) < low:
            raise ValueError(f"{name} must be >= {low:g}, got {getattr(owner, name):g}")


def positive(owner: object, *names: str) -> None:
    """Raise ValueError if one of the named fields of `owner` is not greater than 0."""
    for name in names:
        if not getattr(owner, name) > 0:
            raise ValueError(f"{name} must be > 0, got {getattr(owner, name)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Configure the folder of a run, which is one training."""

    storage: str = "runs"
    """Folder or URI (s3://, gs://) that holds the runs."""
    name: str = "tiny"
    """Name of this run's folder in the storage: ASCII letters, digits, `.`, `_` and `-`, at most 200."""
    resume: bool = False
    """Require that the run exists. Options that are not given keep the values of the run's saved config."""
    storage_timeout_s: int = 120
    """Seconds, >= 0, for which operations on a failing storage are retried before the run fails. The training goes on
    meanwhile."""

    def __post_init__(self):
        at_least(self, 0, "storage_timeout_s")
        # The name becomes a part of URIs, in which other characters have a meaning, and of the names of Ray's actors.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", self.name):
            raise ValueError(
                "run name must be a plain folder name of ASCII letters, digits, '.', '_' and '-', "
                f"at most 200, and begin with a letter or digit, got {self.name!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Configure the number of ranks (worker processes of a training), their resources and their restarts."""

    ranks: int = 2
    """Number of ranks, >= 1. It must divide train.micro_batches, and may change when the run is resumed."""
    min_ranks: int | None = None
    """Minimum number of ranks, 1..ranks, with which the training starts, or goes on after nodes are lost. More ranks
    join when the cluster has room for them. None always trains with `ranks` ranks."""
    resize_s: int = 60
    """Seconds, >= 1, between two checks whether the cluster has room for more ranks."""
    cpus_per_rank: float = 0.5
    """CPUs reserved for each rank, >= 0. Leave at least one CPU of the cluster to Ray Data."""
    threads: int = 1
    """Torch threads of a rank that trains on CPUs, >= 1. A resumed run is bit-equal to an uninterrupted one only with
    the same number of threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`gpu` reserves one GPU for each rank. `auto` does so if the cluster has a GPU."""
    start_timeout_s: int = 30
    """Seconds, >= 1, to wait for the cluster to grow to the resources that the ranks need."""
    collective_timeout_s: int = 600
    """Seconds, >= 1, that a rank waits for the other ranks before it fails."""
    max_failures: int = 2
    """Maximum number of times, >= 0, that failed ranks are restarted from the last checkpoint."""

    def __post_init__(self):
        at_least(self, 1, "ranks", "threads", "start_timeout_s", "collective_timeout_s", "resize_s")
        at_least(self, 0, "max_failures", "cpus_per_rank")
        if self.min_ranks is not None and not 1 <= self.min_ranks <= self.ranks:
            raise ValueError(f"min_ranks must be in 1..ranks ({self.ranks}), got {self.min_ranks}")

    @classmethod
    def one_gpu(cls) -> Self:
        """Return the scale of the `small` presets: one rank on one GPU."""
        return cls(ranks=1, cpus_per_rank=4, threads=4, device="gpu", start_timeout_s=600)

    @classmethod
    def gpu_cluster(cls, ranks: int) -> Self:
        """Return the scale of the paper's presets: one GPU for each rank, on nodes that may take long to start."""
        return cls(
            ranks=ranks,
            cpus_per_rank=8,
            threads=8,
            device="gpu",
            start_timeout_s=1800,
            collective_timeout_s=1800,
            max_failures=20,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Configure the corpus to train on."""

    shards: str
    """Folder or URI (s3://, gs://) of the shards."""
    max_bad_fraction: float = 0.0
    """Maximum fraction of unusable samples, 0..1. If the fraction is larger, the run stops."""

    def __post_init__(self):
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be within 0..1, got {self.max_bad_fraction}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configure the optimization, evaluation, checkpoints and logs."""

    steps: int = 400
    """Number of global steps (optimizer steps), >= 1. Each trains on `micro_batches` micro-batches, which have at most
    `budget_frames` frames each, padding included."""
    seed: int = 0
    """Seed, >= 0, of the initial weights, of the order of the samples and of their noise."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW, > 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup_steps: int = 20
    """Steps of the linear warm-up of the learning rate, >= 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: `constant` keeps the highest rate, `cosine` falls to a tenth of it."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient, > 0. A larger gradient is scaled down to this norm."""
    micro_batches: int = 16
    """Number of micro-batches in a global step over all ranks, >= 1. A micro-batch is the samples of one forward and
    backward pass."""
    budget_frames: int = 512
    """Maximum number of frames in a micro-batch, padding included."""
    shuffle_shards: int = 16
    """Number of shards whose samples are shuffled together, >= 1. More shards mix the samples better. Fewer shards make
    reads more local."""
    evaluate_every: int = 100
    """Steps between two evaluations of the held-out loss. 0 evaluates at the end only."""
    evaluate_frames: int = 4096
    """Number of held-out frames in an evaluation, >= 0."""
    checkpoint_every: int = 200
    """Steps between two checkpoints. 0 saves at the end only."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints to keep, >= 1."""
    keep_best: int = 1
    """Number of checkpoints with the lowest held-out loss to keep in addition, >= 0."""
    max_skipped_steps: int = 20
    """Maximum number of steps, >= 0, that make no update because a gradient is not finite. After more such steps, the
    run stops."""
    loss_spike: float = 3.0
    """Factor, > 0. A step's loss is logged and counted as a spike if it is above this factor times the median of the
    last 50 losses of the same phase."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    overlap_comm: bool = False
    """Overlap DeepSpeed's reduction of gradients with the backward pass. Off by default: with ZeRO-2 the overlap has
    had race conditions on GPUs. DeepSpeed 0.19.8 has mended the known ones. Compare a few hundred steps with it off."""
    log_samples: bool = False
    """Write to samples.jsonl which samples each rank trained on in every step."""
    tensorboard: bool = False
    """Write the metrics to the run's folder `tensorboard` as well."""

    def __post_init__(self):
        at_least(self, 1, "steps", "micro_batches", "budget_frames", "shuffle_shards", "keep_checkpoints")
        at_least(self, 0, "seed", "warmup_steps", "evaluate_every", "evaluate_frames", "checkpoint_every")
        at_least(self, 0, "keep_best", "max_skipped_steps")
        positive(self, "learning_rate", "clip_norm", "loss_spike")


@dataclass(frozen=True, kw_only=True)
class StageConfig(ABC):
    """Configure a training of stage 1 or 2."""

    locations: ClassVar[tuple[str, ...]] = ("run.storage", "data.shards")
    """Names of the options that hold a path or a URI."""
    whole_samples: ClassVar[bool] = False
    """True to train only on samples of exactly sample_frames frames, for models that take no padding."""

    run: RunConfig = field(default_factory=RunConfig)
    """Options of the run's folder."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    """Options of the ranks."""
    data: DataConfig
    """Options of the corpus."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Options of the optimization."""

    def __post_init__(self):
        self.plan.check_ranks(self.scale.ranks)

    @property
    @abstractmethod
    def sample_frames(self) -> int:
        """Return the maximum number of frames of a sample. Longer clips are cut into several samples."""

    @abstractmethod
    def prepare(self, index: "Index", saved: Facts | None) -> Facts:
        """Check that the corpus and the config fit each other, and return the facts that the ranks need.

        The driver calls this method before it starts anything.

        Args:
            index: the index of the corpus, held-out samples included.
            saved: the content of config.json from an earlier start of this run; None for a new run. It contains the
                facts of that start.

        Raises:
            ValueError, OSError: the training cannot work.
        """

    @abstractmethod
    def training_stage(self) -> "type[TrainingStage]":
        """Import and return the class that trains this config. Only ranks call it, because the import needs torch."""

    @property
    def plan(self) -> PlanConfig:
        """Return the rules by which the samples of an epoch are divided into global steps."""
        return PlanConfig(
            seed=self.train.seed,
            micro_batches=self.train.micro_batches,
            budget_frames=self.train.budget_frames,
            context_frames=self.sample_frames,
            shuffle_shards=self.train.shuffle_shards,
            whole=self.whole_samples,
        )

    @classmethod
    def from_dict(cls, saved: dict[str, dict[str, Any]]) -> Self:
        """Return the config that `as_dict` saved.

        Raises:
            ValueError: this version does not know an option, or a value is of the wrong type.
        """
        types = {section.name: cast(type, section.type) for section in fields(cls)}
        try:
            return cls(**{name: types[name](**options) for name, options in saved.items()})
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the saved config is of another version, or damaged: {error}") from error

    def located(self) -> Self:
        """Return the config with absolute paths, because a worker's current folder differs from the driver's."""
        sections: dict[str, Any] = {}
        for option in self.locations:
            section, name = option.split(".")
            options = sections.get(section, getattr(self, section))
            location = getattr(options, name)
            sections[section] = replace(options, **{name: absolute(location) if location else location})
        return replace(self, **sections)


def as_dict(config: StageConfig) -> dict[str, Any]:
    """Return the config as nested dicts, as JSON gives it back: with lists in place of tuples."""
    return json.loads(json.dumps(asdict(config)))


def refuse_changes(saved: dict[str, Any], given: StageConfig, uri: str) -> None:
    """Raise ValueError if options differ that a resumed run must not change. The message names these options.

    Args:
        saved: the config of the earlier start, from `as_dict`. If an earlier version of this project saved it, it may
            lack an option, which then counts as having its default value.
        given: the config of this start.
        uri: the run or the checkpoint that the message names.
    """
    try:
        before = _flat(as_dict(type(given).from_dict(saved)))
    except ValueError as error:
        raise ValueError(f"{uri}: config.json or manifest.json: {error}") from error
    now = _flat(as_dict(given))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(RESUMABLE)
    ]
    if changed:
        raise ValueError(
            f"run {uri} exists with another config ({'; '.join(changed)}): "
            f"use another --run.name, or --run.resume without these options"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as one dict without nesting, with names such as `train.steps`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
