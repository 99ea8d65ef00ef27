"""Keep exponential moving averages (EMA) of a model's weights, which are evaluated and exported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Keep exponential moving averages of parameters, in float32. Every rank has a complete copy.

    Update n, counted from 0, multiplies the averages by d = min(decay, (1 + n) / (10 + n)), and adds the parameters
    times 1 - d. The factor d is small at first, so that the initial weights are soon forgotten.

    Args:
        parameters: the parameters to average.
        decay: maximum of d, 0 <= decay < 1.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self._parameters, self._decay = list(parameters), decay
        self._values = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move the averages towards the current parameters.

        Args:
            number: number of the optimizer update that made these parameters, counted from 0.
        """
        decay = min(self._decay, (1 + number) / (10 + number))
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own weights back at the end."""
        originals = [p.detach().clone() for p in self._parameters]
        self._overwrite_parameters(self._values)
        try:
            yield
        finally:
            self._overwrite_parameters(originals)

    def adopt(self) -> None:
        """Replace the parameters, and the optimizer's fp32 copies of them, with the averaged weights."""
        from deepspeed.utils import safe_set_full_fp32_param

        for value, parameter in zip(self._values, self._parameters, strict=True):
            safe_set_full_fp32_param(parameter, value)
        self._overwrite_parameters(self._values)

    def state(self) -> list[Tensor]:
        """Return the averages for a checkpoint, one float32 tensor for each parameter."""
        return self._values

    def load_state(self, values: Sequence[Tensor]) -> None:
        """Restore the averages that `state` returned."""
        for average, value in zip(self._values, values, strict=True):
            average.copy_(value)

    @torch.no_grad()
    def _overwrite_parameters(self, values: Sequence[Tensor]) -> None:
        for value, parameter in zip(values, self._parameters, strict=True):
            parameter.copy_(value)
