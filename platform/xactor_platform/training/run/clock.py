"""Measure how long a step takes, and what a rank spends of it on its own."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Time a step, its waiting for data, and the rank's own computing."""

    step_s: float
    """Seconds from `begin` to `end`."""
    waited_s: float
    """Seconds of it inside `waiting`."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"

    def begin(self) -> None:
        self._begun, self.waited_s, self._computed_s = time.perf_counter(), 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begun = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time inside as the rank's own. Forward passes belong here: they wait for no other rank."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._computed_s += time.perf_counter() - begun
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)

    def own_s(self) -> float:
        """Return the seconds of waiting for data and of forward passes, once the whole step is launched."""
        if self._events:
            self._events[-1][1].synchronize()
        gpu_ms = sum(first.elapsed_time(last) for first, last in self._events)
        return self.waited_s + self._computed_s + gpu_ms / 1000

    def end(self) -> None:
        self.step_s = time.perf_counter() - self._begun
