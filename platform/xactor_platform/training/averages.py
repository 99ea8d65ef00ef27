"""Averaged weights: what is evaluated, shown and exported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Exponential averages of parameters, float32, on every rank.

    The decay grows with the updates, min(decay, (1 + n) / (10 + n)), so that the random beginning is soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self._parameters, self._decay = list(parameters), decay
        self._values = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """After update number `number` of the parameters, the first being 0."""
        decay = min(self._decay, (1 + number) / (10 + number))
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside."""
        own = [p.detach().clone() for p in self._parameters]
        self._fill(self._values)
        try:
            yield
        finally:
            self._fill(own)

    def adopt(self) -> None:
        """The averaged weights become the parameters, the optimizer's own copies of them too."""
        from deepspeed.utils import safe_set_full_fp32_param

        for value, parameter in zip(self._values, self._parameters, strict=True):
            safe_set_full_fp32_param(parameter, value)
        self._fill(self._values)

    def state(self) -> list[Tensor]:
        return self._values

    def load_state(self, values: Sequence[Tensor]) -> None:
        for own, value in zip(self._values, values, strict=True):
            own.copy_(value)

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for value, parameter in zip(values, self._parameters, strict=True):
            parameter.copy_(value)
