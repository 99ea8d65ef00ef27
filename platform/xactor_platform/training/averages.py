"""Average the weights over the updates, for evaluation and export."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Keep exponential averages of parameters, in float32, on every rank.

    The decay grows with the number n of updates, min(decay, (1 + n) / (10 + n)), so that the initial weights are soon
    forgotten.

    Args:
        parameters: the averaged parameters.
        decay: maximum decay, 0 <= d < 1.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self._parameters, self._decay = list(parameters), decay
        self._values = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Include the current parameters, the result of update `number`, counted from 0."""
        decay = min(self._decay, (1 + number) / (10 + number))
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the model inside the block."""
        originals = [p.detach().clone() for p in self._parameters]
        self._overwrite_parameters(self._values)
        try:
            yield
        finally:
            self._overwrite_parameters(originals)

    def adopt(self) -> None:
        """Replace the parameters, and the optimizer's fp32 copies of them, by the averaged weights."""
        from deepspeed.utils import safe_set_full_fp32_param

        for value, parameter in zip(self._values, self._parameters, strict=True):
            safe_set_full_fp32_param(parameter, value)
        self._overwrite_parameters(self._values)

    def state(self) -> list[Tensor]:
        return self._values

    def load_state(self, values: Sequence[Tensor]) -> None:
        for average, value in zip(self._values, values, strict=True):
            average.copy_(value)

    @torch.no_grad()
    def _overwrite_parameters(self, values: Sequence[Tensor]) -> None:
        for value, parameter in zip(values, self._parameters, strict=True):
            parameter.copy_(value)
