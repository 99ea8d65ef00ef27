"""What a stage's training is, beyond the loop that both stages share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xactor_platform.data.index import Index
from xactor_platform.data.plan import Step
from xactor_platform.data.stream import Reader
from xactor_platform.training.config import StageConfig

Facts = dict[str, Any]  # what the driver finds out for all ranks; part of the run's config.json


class Stage(ABC):
    """One rank's side of a stage. Steps are counted from 0.

    Attributes:
        objective: model and loss in one module, for the engine.
        reader: of the samples to train on.
        flops_per_frame: of forward and backward; None where it is not known.
    """

    objective: Any  # an nn.Module
    reader: Reader
    flops_per_frame: float | None = None

    @classmethod
    @abstractmethod
    def prepare(cls, config: Any, index: Index, saved: Facts | None) -> Facts:
        """On the driver, before anything starts: checks what can be checked, and finds the facts.

        Args:
            index: the whole corpus.
            saved: the facts of an earlier start of this run.
        """

    @abstractmethod
    def __init__(
        self, config: Any, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ): ...

    @abstractmethod
    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The trainable parameters, in the groups that have a learning rate of their own."""

    @abstractmethod
    def rates(self, step: int) -> list[float]:
        """The groups' learning rates at a step: a pure function of it."""

    @abstractmethod
    def target_frames(self, planned: Step, step: int) -> int:
        """How many frames of all ranks a step's loss is summed over; the plan knows."""

    @abstractmethod
    def loss(
        self, forward: Callable[..., Tensor], batch: Any, step: int, key: tuple[int | str, ...]
    ) -> Tensor:
        """The loss of a batch of `reader`'s, summed over its frames.

        Args:
            forward: the objective's, or the engine's around it.
            key: (seed, epoch); with a sample's own key and start it decides what is drawn for it.
        """

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """After a step, on all ranks: figures for metrics.jsonl."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """The trained model as a pipeline's parts."""

    def begin(self, step: int) -> None:  # noqa: B027  a stage may have nothing to do
        """Before a step, the first of a resumed run too."""

    def end(self, step: int) -> None:  # noqa: B027
        """After the optimizer's step."""

    def columns(self, step: int) -> dict[str, Any]:
        """What else metrics.jsonl says of a step."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside model, optimizer and cursor; the same on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes up what `state` gave."""


def stage_of(config: StageConfig) -> type[Stage]:
    """The stage that a config is of."""
    if config.stage == 1:  # imported by who trains it: stage 2 needs nothing of diffusers, and starts sooner
        from xactor_platform.training.stage1 import Stage1

        return Stage1
    from xactor_platform.training.stage2 import Stage2

    return Stage2
