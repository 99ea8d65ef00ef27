"""Define the interface between the training loop and the two stages that it trains.

Stage 1 trains the renderer and the motion encoder, stage 2 trains the motion model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xactor_platform.data.index import Index
from xactor_platform.data.plan import Step
from xactor_platform.data.stream import Reader
from xactor_platform.training.held_out import Evaluation
from xactor_platform.training.train_config import Facts


class TrainingStage(ABC):
    """Build, feed, evaluate and export the model of one stage on one rank.

    A rank is one worker process of a training. Steps are global steps (optimizer steps), counted from 0.
    """

    objective: Any
    """The nn.Module that holds the model and computes the loss. The engine wraps it."""
    reader: Reader
    """The reader of the samples to train on."""
    flops_per_frame: float | None = None
    """FLOPs of the forward and the backward pass per frame; None if they are not known."""

    @abstractmethod
    def __init__(
        self, config: Any, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ): ...

    @abstractmethod
    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return the trainable parameters, in groups that each have their own learning rate."""

    @abstractmethod
    def rates(self, step: int) -> list[float]:
        """Return the learning rate of each group. It depends on the step alone."""

    @abstractmethod
    def target_frames(self, planned: Step, step: int) -> int:
        """Return the number of frames, over all ranks, whose losses are summed in a step."""

    @abstractmethod
    def inputs(self, batch: Any, random_key: tuple[int | str, ...]) -> Any:
        """Return what `loss` takes for a batch of `reader`, on the rank's device.

        A thread calls it while the rank trains, so it must not use torch's global generator or change the stage.

        Args:
            batch: the batch that `reader` made from a micro-batch.
            random_key: (seed, epoch). Together with the sample's key and first frame, it determines the random numbers
                that are drawn for a sample.
        """

    @abstractmethod
    def loss(self, forward: Callable[..., Tensor], inputs: Any, step: int) -> Tensor:
        """Return the loss of a batch, summed over its frames.

        Args:
            forward: the objective, or the engine that wraps it.
            inputs: what `inputs` returned for the batch.
            step: the global step, counted from 0.
        """

    @abstractmethod
    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the held-out samples after a step. All ranks must call it."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save each component of the trained model to its own subfolder of `folder`, as pipelines load them."""

    def begin(self, step: int) -> None:  # noqa: B027
        """Prepare for a step. The loop calls it before every step, including the first one of a resumed run."""

    def end(self, step: int) -> None:  # noqa: B027
        """Finish a step. The loop calls it after the optimizer's update."""

    def columns(self, step: int) -> dict[str, Any]:
        """Return additional columns for a step's row in metrics.jsonl."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps in addition to model, optimizer and cursor. It is the same on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the state that `state` returned."""
