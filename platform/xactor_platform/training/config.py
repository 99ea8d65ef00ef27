"""What every training run is made of: frozen dataclasses, from which the command line is built."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, cast

from xactor_platform.data.plan import PlanConfig
from xactor_platform.storage.location import absolute


def at_least(owner: object, low: float, *names: str) -> None:
    """ValueError where one of the fields is less."""
    for name in names:
        if getattr(owner, name) < low:
            raise ValueError(f"{name} must be >= {low:g}, got {getattr(owner, name):g}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """
    storage: URI under which runs are kept (local, s3://, gs://).
    name: this run's folder there.
    resume: insist on going on; the saved config is the default of every other option.
    storage_timeout_s: how long the storage may fail before the run ends; it trains on meanwhile.
    """

    storage: str = "runs"
    name: str = "tiny"
    resume: bool = False
    storage_timeout_s: int = 120

    def __post_init__(self):
        at_least(self, 0, "storage_timeout_s")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"run name must be a plain folder name, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """
    ranks: worker processes; must divide train.micro_batches. A run may go on with another number.
    min_ranks: go on with fewer, down to so many, where nodes are lost, and with more again when they come back; None
        is always `ranks`.
    resize_s: how often to look whether there is room for more.
    cpus_per_rank: CPUs reserved for each. Some must be left for Ray Data to read with.
    threads: torch threads a rank on CPU. Part of the config: resume is bit-equal only with the same number.
    device: `gpu` reserves one for each rank; `auto` where the cluster has any.
    start_timeout_s: how long to wait for a cluster to grow to the resources that the ranks need.
    collective_timeout_s: how long a rank waits for the others before it gives up.
    max_failures: how often Ray restarts the ranks from the last checkpoint.
    """

    ranks: int = 2
    min_ranks: int | None = None
    resize_s: int = 60
    cpus_per_rank: float = 0.5
    threads: int = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    start_timeout_s: int = 30
    collective_timeout_s: int = 600
    max_failures: int = 2

    def __post_init__(self):
        at_least(self, 1, "ranks", "threads", "start_timeout_s", "collective_timeout_s", "resize_s")
        at_least(self, 0, "max_failures", "cpus_per_rank")
        if self.min_ranks is not None and not 1 <= self.min_ranks <= self.ranks:
            raise ValueError(f"min_ranks must be in 1..ranks ({self.ranks}), got {self.min_ranks}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """
    shards: URI of the folder of shards.
    max_bad_fraction: how much of the corpus may be unusable before the run stops.
    """

    shards: str
    max_bad_fraction: float = 0.0

    def __post_init__(self):
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be within 0..1, got {self.max_bad_fraction}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """
    steps: global steps, each of micro_batches micro-batches of at most budget_frames padded frames.
    warmup_steps: of a linear warm-up. schedule: constant afterwards, or a cosine down to a tenth.
    evaluate_every, checkpoint_every: in steps; 0 is only at the end.
    evaluate_frames: how many held-out frames an evaluation takes.
    keep_checkpoints: how many of the newest to keep.
    keep_best: how many of those with the lowest held-out loss to keep besides.
    max_skipped_steps: past so many steps without an update, since a gradient was not finite, the run stops.
    loss_spike: a loss of over so many times the median of its phase's last 50 is logged and counted, no more.
    precision: `auto` is bf16 on a GPU and fp32 on a CPU.
    gradient_checkpointing: recompute activations in the backward pass.
    overlap_comm: DeepSpeed's overlap of reduction and backward; it has had races, so off by default.
    log_samples: write every sample of every step to samples.jsonl.
    tensorboard: write metrics to the run's folder `tensorboard` too.
    """

    steps: int = 400
    seed: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 20
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = 1.0
    micro_batches: int = 16
    budget_frames: int = 512
    shuffle_shards: int = 16
    evaluate_every: int = 100
    evaluate_frames: int = 4096
    checkpoint_every: int = 200
    keep_checkpoints: int = 3
    keep_best: int = 1
    max_skipped_steps: int = 20
    loss_spike: float = 3.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    overlap_comm: bool = False
    log_samples: bool = False
    tensorboard: bool = False

    def __post_init__(self):
        at_least(self, 1, "steps", "micro_batches", "budget_frames", "shuffle_shards", "keep_checkpoints")
        at_least(self, 0, "seed", "warmup_steps", "evaluate_every", "evaluate_frames", "checkpoint_every")
        at_least(self, 0, "keep_best", "max_skipped_steps")
        for name in ("learning_rate", "clip_norm", "loss_spike"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StageConfig(ABC):
    """What the configs of both stages have. stage: which one it is of."""

    stage: ClassVar[Literal[1, 2]]
    run: RunConfig = field(default_factory=RunConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    data: DataConfig
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        self.plan.check_ranks(self.scale.ranks)

    @classmethod
    def from_dict(cls, saved: dict[str, dict[str, Any]]) -> Self:
        """The config that `dataclasses.asdict` made a dict of. ValueError names an option it does not know."""
        parts = {part.name: cast(type, part.type) for part in fields(cls)}
        try:
            return cls(**{name: parts[name](**options) for name, options in saved.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the saved config is of another version: {error}") from error

    def located(self) -> Self:
        """The same with local paths made absolute: a worker's current folder is another than the driver's."""
        return replace(
            self,
            run=replace(self.run, storage=absolute(self.run.storage)),
            data=replace(self.data, shards=absolute(self.data.shards)),
        )

    @property
    @abstractmethod
    def plan(self) -> PlanConfig:
        """How its epochs are cut."""


def as_dict(config: StageConfig) -> dict[str, Any]:
    """As JSON has it, which knows lists but no tuples."""
    return json.loads(json.dumps(asdict(config)))
