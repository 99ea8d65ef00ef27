"""Measure the time of a training step, and the part of this time in which a rank does not wait for other ranks."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Measure the times of a step on one rank: the whole step, waiting for data, and forward passes."""

    step_s: float
    """Seconds from `begin` to `end`."""
    waited_s: float
    """Seconds of the step that were spent inside `waiting`, for data."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"

    def begin(self) -> None:
        """Start to measure a step."""
        self._begun, self.waited_s, self._computed_s = time.perf_counter(), 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        begun = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time inside the block as computing. Use it for forward passes: they do not wait for other ranks."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._computed_s += time.perf_counter() - begun
            return
        # The CPU only launches the work, so events measure the time on the GPU.
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def own_s(self) -> float:
        """Return the seconds in which this rank waited for data or ran forward passes, and so waited for no other rank.

        Call it after the optimizer step is launched, because the call waits until the GPU has done the forward passes.
        """
        if self._events:
            _, last_end = self._events[-1]
            last_end.synchronize()
        gpu_ms = sum(start.elapsed_time(end) for start, end in self._events)
        return self.waited_s + self._computed_s + gpu_ms / 1000

    def end(self) -> None:
        """Finish the measurement of a step, and set `step_s`."""
        self.step_s = time.perf_counter() - self._begun
