"""Trace steps of a running training with torch's profiler, on request."""

import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from xactor_platform.training.run.folder import RunFolder

ASK = "profile"
"""Name of the file in the run's folder that asks for a trace."""

TRACES = "traces"
LOOK_S = 5.0
"""Seconds between two looks for the file `profile`. In an object store each look costs a request."""

STEPS = 3
"""Number of steps in a trace if the file is empty."""

MAX_STEPS = 50
"""Maximum number of steps in a trace. It is limited because one step of a large model takes tens of MB in a trace."""


class TraceOnDemand:
    """Write rank 0's `torch.profiler` trace of the next steps when the run's folder has a file `profile`.

        touch runs/tiny/profile             # the next 3 steps
        echo 5 > runs/tiny/profile          # the next 5
        echo 5 | aws s3 cp - s3://bucket/runs/paper-7b/profile

    The file is deleted, and `traces/step-<first>.json.gz` is written for https://ui.perfetto.dev or chrome://tracing.
    `<first>` is the number of the first traced step. The training is not restarted. Without the file it is not slower.
    """

    def __init__(self, folder: RunFolder):
        self._folder, self._looked = folder, 0.0
        self._profile: profile | None = None
        self._first_step = self._steps_left = 0

    def step(self, number: int) -> None:
        """Start, continue or end a trace after a global step, counted from 1. A storage error loses only the trace."""
        try:
            self._step(number)
        except OSError as error:
            print(f"{self._folder.uri}: no trace: {error}", flush=True)

    def _step(self, number: int) -> None:
        if self._profile:
            self._steps_left -= 1
            self._profile.step()
            if not self._steps_left:
                self.close()
        elif time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            steps = self._requested_steps()
            if steps is not None:
                self._begin(steps, number + 1)

    def close(self) -> None:
        """End the trace, if there is one, and write the steps so far to the run's folder."""
        if not self._profile:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        name = f"{TRACES}/step-{self._first_step:08d}.json.gz"
        with tempfile.TemporaryDirectory(prefix="xactor-trace-") as folder:
            path = Path(folder, "trace.json.gz")
            finished.export_chrome_trace(str(path))
            self._folder.write_bytes(name, path.read_bytes())
        print(f"trace written: {self._folder.uri}/{name}", flush=True)

    def _begin(self, steps: int, first: int) -> None:
        """Start a trace of `steps` steps. `first` is the number of its first step."""
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._first_step, self._steps_left = first, steps
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()

    def _requested_steps(self) -> int | None:
        """Return the number of steps that the file asks for, and delete the file.

        Return None if there is no file, or if its content is invalid, which is reported.
        """
        # No retries: if the file cannot be read now, the next look reads it.
        text = self._folder.read_text(ASK, storage_timeout_s=0)
        if text is None:
            return None
        self._folder.location.delete(ASK)
        wanted = text.strip() or str(STEPS)
        if not wanted.isdecimal() or not 1 <= int(wanted) <= MAX_STEPS:
            print(
                f"{self._folder.uri}/{ASK} must be empty or a number of steps in 1..{MAX_STEPS}, "
                f"got {wanted[:40]!r}: no trace",
                flush=True,
            )
            return None
        return int(wanted)
