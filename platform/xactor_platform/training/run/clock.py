"""Measure the time of a step, and the part of it in which a rank does not wait for other ranks."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Measure a step, its waiting for data, and its forward passes."""

    step_s: float
    """Seconds from `begin` to `end`."""
    waited_s: float
    """Seconds of the step inside `waiting`."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"

    def begin(self) -> None:
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
        """Count the time inside the block as computing. Use it for forward passes, which wait for no other rank."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._computed_s += time.perf_counter() - begun
            return
        # The CPU only launches the work, so the GPU's own clock is read.
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def own_s(self) -> float:
        """Return the seconds of waiting for data and of forward passes. Call it once the optimizer step is launched."""
        if self._events:
            _, last_end = self._events[-1]
            last_end.synchronize()
        gpu_ms = sum(start.elapsed_time(end) for start, end in self._events)
        return self.waited_s + self._computed_s + gpu_ms / 1000

    def end(self) -> None:
        self.step_s = time.perf_counter() - self._begun
