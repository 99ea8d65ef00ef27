"""Traces of a running training, when somebody asks for one."""

import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from xactor_platform.training.run.folder import RunFolder

ASK, TRACES = "profile", "traces"
LOOK_S = 5.0  # between two looks for the file: one costs a request of an object store
STEPS = 3
MOST_STEPS = 50  # a step of a large model is tens of MB of trace


class TraceOnDemand:
    """Rank 0's `torch.profiler` trace of the next steps, once the run's folder has a file `profile`.

        touch runs/tiny/profile             # the next 3 steps
        echo 5 > runs/tiny/profile          # the next 5
        echo 5 | aws s3 cp - s3://bucket/runs/paper-7b/profile

    The file is taken away and `traces/step-<first>.json.gz` comes in its place, for https://ui.perfetto.dev or
    chrome://tracing. Nothing is restarted, and nothing is slower until somebody asks.
    """

    def __init__(self, folder: RunFolder):
        self._folder, self._looked = folder, 0.0
        self._profile: profile | None = None
        self._first = self._left = 0

    def step(self, number: int) -> None:
        """After global step `number`, from 1. A storage that fails costs the trace and not the training."""
        try:
            self._step(number)
        except OSError as error:
            print(f"{self._folder.uri}: no trace: {error}", flush=True)

    def _step(self, number: int) -> None:
        if self._profile:
            self._left -= 1
            self._profile.step()
            if not self._left:
                self.close()
        elif time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            if (asked := self._asked()) is not None:
                self._begin(asked, number + 1)

    def close(self) -> None:
        """Writes what there is of a trace."""
        if not self._profile:
            return
        done, self._profile = self._profile, None
        done.stop()
        name = f"{TRACES}/step-{self._first:08d}.json.gz"
        with tempfile.TemporaryDirectory(prefix="xactor-trace-") as folder:
            path = Path(folder, "trace.json.gz")
            done.export_chrome_trace(str(path))
            self._folder.write_bytes(name, path.read_bytes())
        print(f"trace written: {self._folder.uri}/{name}", flush=True)

    def _begin(self, steps: int, first: int) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._first, self._left = first, steps
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()

    def _asked(self) -> int | None:
        """For how many steps, if somebody asks. What makes no sense is said in one line, and not asked again."""
        text = self._folder.read_text(ASK, storage_timeout_s=0)  # who cannot read now looks again
        if text is None:
            return None
        self._folder.location.delete(ASK)
        wanted = text.strip() or str(STEPS)
        if not wanted.isdecimal() or not 1 <= int(wanted) <= MOST_STEPS:
            print(
                f"{self._folder.uri}/{ASK} must be empty or a number of steps in 1..{MOST_STEPS}, "
                f"got {wanted[:40]!r}: no trace",
                flush=True,
            )
            return None
        return int(wanted)
