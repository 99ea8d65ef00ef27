"""Run the numbered steps of a long command: quietly, with progress and an estimate of the remaining time."""

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
from typing import IO

# Ray puts the worker that printed a line in front of it, in colour.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WORKER = re.compile(r"^\(\w+ pid=\d+[^)]*\) ")
# Our jobs print `step 5/300 ...`, `5/12 clips` and `1/2 shards: ...`.
_PROGRESS = re.compile(r"^(?:step )?(?P<done>\d+)/(?P<all>\d+)\s+(?P<rest>.*)")
_IMPORTANT = ("error", "done:", "stopped", "CORRUPT", "submit:")
# What libraries print to a command's standard output.
_NOISE = re.compile(
    r"^(W\d{4} |I\d{4} |INFO:|WARNING|\[?\d{4}-\d\d-\d\d |Writing model shards|Loading weights)"
)
BEAT_S = 5.0
"""The longest time without a line of progress, in seconds."""
FAILURE_LINES = 30
"""Lines of the log that are shown when a command fails."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the whole."""

    title: str
    """A verb first: "Training stage 1"."""
    expected_s: float
    """Seconds that it takes on two CPU cores."""


class Steps:
    """Run commands in steps and show one line of progress for each.

    Everything that the commands print goes to a log file. The estimate of the remaining time starts with the steps'
    expected times, follows the progress of the running step, and is scaled by the speed of the finished steps.

    Args:
        steps: All steps, in their order.
        log: The file for the commands' whole output.
    """

    def __init__(self, steps: Sequence[Step], log: Path):
        self._steps, self._log = list(steps), log
        self._at, self._done_s, self._done_expected_s = -1, 0.0, 0.0
        self._started = self._step_started = self._shown = time.monotonic()
        self._measured = False
        self._fraction, self._what = 0.0, "working"
        self._wide = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def next(self) -> None:
        """Begin the next step and print its title."""
        self._finish()
        self._at += 1
        self._step_started, self._fraction, self._what = time.monotonic(), 0.0, "working"
        self._measured = True
        title = self._steps[self._at].title
        self._print(f"\n{title} ({self._at + 1} of {len(self._steps)}), {_about(self.left_s())} left")
        self._shown = time.monotonic()

    def skip(self) -> None:
        """Count the current step as finished without measuring its speed."""
        self._print("  exists already")
        self._fraction, self._measured = 1.0, False

    def left_s(self) -> float:
        """Return the estimated remaining time of all steps, in seconds."""
        speed = self._done_s / self._done_expected_s if self._done_expected_s else 1.0
        later = sum(step.expected_s for step in self._steps[self._at + 1 :])
        if self._at < 0:
            return later * speed
        passed_s = time.monotonic() - self._step_started
        expected_s = self._steps[self._at].expected_s * speed
        if self._fraction > 0.05:
            expected_s = passed_s / self._fraction
        # A step that takes longer than expected will hardly end at once.
        return max(expected_s - passed_s, 0.2 * passed_s * (self._fraction < 1)) + later * speed

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, results: bool = False
    ) -> int:
        """Run a command of the current step and return its exit status.

        Args:
            command: The command line.
            env: Its environment; this process's own by default.
            results: Print the command's standard output, without its progress and libraries' news.
        """
        lines: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        last: deque[str] = deque(maxlen=FAILURE_LINES)
        environment = {**(env or os.environ), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            streams = ((process.stdout, results), (process.stderr, False))
            readers = [threading.Thread(target=_read, args=(*each, lines), daemon=True) for each in streams]
            for reader in readers:
                reader.start()
            try:
                with self._log.open("a") as log:
                    self._follow(lines, len(readers), log, last)
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
        if code:
            self._print("\n".join(last))
        return code

    def close(self) -> float:
        """End the last step and return the minutes that all steps took."""
        self._finish()
        return (time.monotonic() - self._started) / 60

    def _follow(
        self,
        lines: "queue.SimpleQueue[tuple[str, bool] | None]",
        readers: int,
        log: IO[str],
        last: deque[str],
    ) -> None:
        while readers:
            try:
                item = lines.get(timeout=BEAT_S)
            except queue.Empty:
                self._progress()
                continue
            if item is None:
                readers -= 1
                continue
            line, wanted = item
            log.write(line + "\n")
            log.flush()
            if found := _PROGRESS.match(line):
                self._fraction = int(found["done"]) / max(int(found["all"]), 1)
                self._what = re.sub(r"\s+\d+:\d\d left$", "", line)
                self._progress(now=self._fraction == 1)
                continue
            if line.strip():
                last.append(line)
            if line.startswith(_IMPORTANT) or (wanted and line.strip() and not _NOISE.match(line)):
                self._print(f"  {line}")
            elif time.monotonic() - self._shown > BEAT_S:
                self._progress()

    def _finish(self) -> None:
        if self._measured:
            self._done_s += time.monotonic() - self._step_started
            self._done_expected_s += self._steps[self._at].expected_s

    def _progress(self, now: bool = False) -> None:
        """Show how far the step is: on a terminal in place, elsewhere every few seconds or `now`."""
        moment = time.monotonic()
        terminal = sys.stdout.isatty()
        if not (terminal or now) and moment - self._shown < BEAT_S:
            return
        self._shown = moment
        passed = f"{int(moment - self._step_started)} s"
        text = f"  {self._what}  {passed}, {_about(self.left_s())} left in all"
        if terminal:
            print(f"\r{text.ljust(self._wide)}", end="", flush=True)
            self._wide = len(text)
        else:
            print(text, flush=True)

    def _print(self, text: str) -> None:
        if self._wide:
            print(f"\r{' ' * self._wide}\r", end="")
            self._wide = 0
        print(text, flush=True)


def _read(stream: IO[str], wanted: bool, lines: "queue.SimpleQueue[tuple[str, bool] | None]") -> None:
    """Put a stream's lines into the queue without colours and workers' names, and None at its end."""
    for line in stream:
        lines.put((_WORKER.sub("", _COLOUR.sub("", line)).rstrip(), wanted))
    lines.put(None)


def _about(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    return f"about {round(seconds / 60)} min"
