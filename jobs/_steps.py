"""Run a long command in numbered steps, with one line of progress and an estimate of the remaining time."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Ray prefixes each line of a worker with the worker's name, in colour. Both are removed.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WORKER = re.compile(r"^\(\w+ pid=\d+[^)]*\) ")
# Our jobs report their progress in lines such as `step 5/300 ...`, `5/12 clips` and `1/2 shards: ...`.
_PROGRESS = re.compile(r"^(?:step )?(?P<done>\d+)/(?P<all>\d+)\s+(?P<rest>.*)")
# A line that starts with one of these words is always printed.
_IMPORTANT = ("error", "done:", "stopped", "CORRUPT", "submit:")
# Lines that libraries print to a command's standard output. They are only logged.
_NOISE = re.compile(
    r"^(W\d{4} |I\d{4} |INFO:|WARNING|\[?\d{4}-\d\d-\d\d |Writing model shards|Loading weights)"
)
MAX_SILENCE_S = 5.0
"""Maximum time without a progress line, in seconds."""
FAILURE_LINES = 30
"""Number of the command's last lines that are shown when it fails."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Describe one step of a long command."""

    title: str
    """Title, which starts with a verb: "Training stage 1"."""
    expected_s: float
    """Expected duration of the step on two CPU cores, in seconds."""


class Steps:
    """Run commands in steps and show one line of progress for each.

    Everything that the commands print goes to a log file. The estimate of the remaining time adds up the expected
    durations of the steps, scaled by the speed of the finished steps. It also follows the progress of the current step.

    Args:
        steps: All steps, in their order.
        log: The file for everything that the commands print.
    """

    def __init__(self, steps: Sequence[Step], log: Path):
        self._steps, self._log = list(steps), log
        # Index of the current step; -1 before the first one.
        self._index = -1
        # Real and expected duration of the finished steps together, without those that were skipped.
        self._finished_s, self._finished_expected_s = 0.0, 0.0
        self._started = self._step_started = self._last_shown = time.monotonic()
        # Whether the current step's duration counts in the estimate of this machine's speed. A skipped step's does not.
        self._is_measured = False
        # Progress of the current step, 0..1, and the text that describes the progress.
        self._fraction, self._progress_line = 0.0, "working"
        # Characters of the progress line that the terminal shows now; 0 if it shows none.
        self._shown_width = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def next(self) -> None:
        """Begin the next step and print its title."""
        self._finish()
        self._index += 1
        self._step_started, self._fraction, self._progress_line = time.monotonic(), 0.0, "working"
        self._is_measured = True
        title = self._steps[self._index].title
        self._print(f"\n{title} ({self._index + 1} of {len(self._steps)}), {_about(self.left_s())} left")
        self._last_shown = time.monotonic()

    def skip(self) -> None:
        """Count the current step as finished, because its result exists, and leave it out of the speed estimate."""
        self._print("  exists already")
        self._fraction, self._is_measured = 1.0, False

    def left_s(self) -> float:
        """Return the estimated remaining time of all steps, in seconds."""
        # Real duration divided by expected duration: above 1 on a machine that is slower than expected.
        slowness = self._finished_s / self._finished_expected_s if self._finished_expected_s else 1.0
        later_s = slowness * sum(step.expected_s for step in self._steps[self._index + 1 :])
        if self._index < 0:
            return later_s
        passed_s = time.monotonic() - self._step_started
        expected_s = self._steps[self._index].expected_s * slowness
        # The progress of the first 5 % is too noisy for an extrapolation.
        if self._fraction > 0.05:
            expected_s = passed_s / self._fraction
        # A step that already takes longer than expected is assumed to need a fifth of the passed time more.
        min_left_s = 0.2 * passed_s if self._fraction < 1 else 0.0
        return max(expected_s - passed_s, min_left_s) + later_s

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, results: bool = False
    ) -> int:
        """Run a command of the current step and return its exit status.

        Args:
            command: The command line.
            env: The command's environment; by default this process's environment.
            results: Also print what the command writes to standard output, except lines of libraries. Progress lines
                update the progress line instead.
        """
        lines: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        last_lines: deque[str] = deque(maxlen=FAILURE_LINES)
        environment = {**(env or os.environ), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        # A byte that cannot be decoded as text must not end a reader thread.
        text: Any = {"text": True, "errors": "replace"}
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, **text) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # Pairs of a stream and whether all of its lines are printed.
            streams = ((process.stdout, results), (process.stderr, False))
            readers = [
                threading.Thread(target=_read, args=(stream, wanted, lines), daemon=True)
                for stream, wanted in streams
            ]
            for reader in readers:
                reader.start()
            try:
                with self._log.open("a") as log:
                    self._follow(lines, len(readers), log, last_lines)
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
        if code:
            self._print("\n".join(last_lines))
        return code

    def close(self) -> float:
        """End the last step and return the minutes that all steps took."""
        self._finish()
        return (time.monotonic() - self._started) / 60

    def _follow(
        self,
        lines: "queue.SimpleQueue[tuple[str, bool] | None]",
        open_streams: int,
        log: IO[str],
        last_lines: deque[str],
    ) -> None:
        """Log the lines in the queue, print the important ones, and show the progress, until all streams have ended.

        Args:
            lines: Pairs of a line and whether it is printed even if it is not important. None for the end of a stream.
            open_streams: Number of streams that put their lines into the queue.
            log: The open log file.
            last_lines: Collects the last lines, which are shown if the command fails.
        """
        while open_streams:
            try:
                item = lines.get(timeout=MAX_SILENCE_S)
            except queue.Empty:
                self._show_progress()
                continue
            if item is None:
                open_streams -= 1
                continue
            line, wanted = item
            log.write(line + "\n")
            log.flush()
            if found := _PROGRESS.match(line):
                self._fraction = int(found["done"]) / max(int(found["all"]), 1)
                # Remove the command's own estimate, because the progress line shows an estimate for all steps.
                self._progress_line = re.sub(r"\s+\d+:\d\d left$", "", line)
                self._show_progress(now=self._fraction == 1)
                continue
            if line.strip():
                last_lines.append(line)
            if line.startswith(_IMPORTANT) or (wanted and line.strip() and not _NOISE.match(line)):
                self._print(f"  {line}")
            elif time.monotonic() - self._last_shown > MAX_SILENCE_S:
                self._show_progress()

    def _finish(self) -> None:
        """Add the current step's real and expected duration to those of the finished steps, unless it was skipped."""
        if self._is_measured:
            self._finished_s += time.monotonic() - self._step_started
            self._finished_expected_s += self._steps[self._index].expected_s

    def _show_progress(self, now: bool = False) -> None:
        """Show the current step's progress.

        On a terminal the progress line is overwritten at every call. If stdout is a file or a pipe, a new line is
        printed, but at most one every MAX_SILENCE_S seconds unless `now` is true.
        """
        moment = time.monotonic()
        terminal = sys.stdout.isatty()
        if not (terminal or now) and moment - self._last_shown < MAX_SILENCE_S:
            return
        self._last_shown = moment
        passed = f"{int(moment - self._step_started)} s"
        text = f"  {self._progress_line}  {passed}, {_about(self.left_s())} left in all"
        if terminal:
            print(f"\r{text.ljust(self._shown_width)}", end="", flush=True)
            self._shown_width = len(text)
        else:
            print(text, flush=True)

    def _print(self, text: str) -> None:
        """Print text. On a terminal the text replaces the progress line."""
        if self._shown_width:
            print(f"\r{' ' * self._shown_width}\r", end="")
            self._shown_width = 0
        print(text, flush=True)


def _read(stream: IO[str], wanted: bool, lines: "queue.SimpleQueue[tuple[str, bool] | None]") -> None:
    """Put a stream's lines into the queue, without colours and workers' names. Put None when the stream ends.

    Args:
        stream: The standard output or standard error of a command.
        wanted: Whether all lines of the stream are printed. It is put into the queue with each line.
        lines: The queue.
    """
    for line in stream:
        lines.put((_WORKER.sub("", _COLOUR.sub("", line)).rstrip(), wanted))
    lines.put(None)


def _about(seconds: float) -> str:
    """Return a rounded duration in words: in steps of 5 s below a minute, in minutes otherwise."""
    if seconds < 60:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    return f"about {round(seconds / 60)} min"
