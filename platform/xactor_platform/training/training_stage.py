"""Define what differs between the trainings of stage 1 and stage 2; the loop is shared."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xactor_platform.data.index import Index
from xactor_platform.data.plan import Step
from xactor_platform.data.stream import Reader
from xactor_platform.training.train_config import Facts


class TrainingStage(ABC):
    """Build, feed, evaluate and export the model of one stage on one rank. Steps are counted from 0."""

    objective: Any
    """The nn.Module of model and loss, for the engine."""
    reader: Reader
    """The reader of the samples to train on."""
    flops_per_frame: float | None = None
    """FLOPs of forward and backward; None if they are not known."""

    @abstractmethod
    def __init__(
        self, config: Any, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ): ...

    @abstractmethod
    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return the trainable parameters, in groups that each have their own learning rate."""

    @abstractmethod
    def rates(self, step: int) -> list[float]:
        """Return the groups' learning rates. They depend on the step alone."""

    @abstractmethod
    def target_frames(self, planned: Step, step: int) -> int:
        """Return the number of frames, over all ranks, that the loss of a step is summed over."""

    @abstractmethod
    def loss(
        self, forward: Callable[..., Tensor], batch: Any, step: int, key: tuple[int | str, ...]
    ) -> Tensor:
        """Return the loss of a batch of `reader`, summed over its frames.

        Args:
            forward: the objective, or the engine that wraps it.
            batch: what `reader` made of a micro-batch.
            step: the global step.
            key: (seed, epoch). With a sample's own key and start it determines the sample's random draws.
        """

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """Return figures for metrics.jsonl. All ranks call it after a step."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save the trained model as components of a pipeline."""

    def begin(self, step: int) -> None:  # noqa: B027
        """Prepare for a step; also called for the first step of a resumed run."""

    def end(self, step: int) -> None:  # noqa: B027
        """Finish a step, after the optimizer."""

    def columns(self, step: int) -> dict[str, Any]:
        """Return further columns of a step's row in metrics.jsonl."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps next to model, optimizer and cursor. It is the same on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `state` returned."""
