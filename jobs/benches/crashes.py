"""Kill processes of a training on purpose, and read its losses and samples to compare it with an undisturbed training.

An undisturbed training is one in which no process was killed.
"""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.run.run_log import last_attempts
from xactor_platform.training.run.folder import METRICS, SAMPLES, RunFolder

# The process to kill: a training worker of Ray Train, a process in which Ray Data reads samples, Ray Train's controller
# or the driver. `stop` is no process: the driver gets SIGTERM, and the training saves a checkpoint before it ends.
Victim = Literal["worker", "data", "controller", "driver", "stop"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
# Beginnings of the process titles that Ray sets. They identify the victims.
_TITLES = {"worker": "ray::RayTrainWorker", "data": "ray::MapBatches", "controller": "ray::TrainController"}
# Seconds between two checks for a process or for a finished step.
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Describe one kill."""

    victim: Victim
    """The process that gets `kill -9`; `stop` sends SIGTERM to the driver instead."""
    after_step: int
    """Number of a training step. The kill follows as soon as this step is finished."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Describe what followed a kill."""

    victim: Victim
    """The process that was killed."""
    step: int
    """The last step that was finished before the training resumed."""
    checkpoint: int
    """Step of the newest complete checkpoint: at the time of the kill, but for `stop` when the driver had ended."""
    resumed_from: int
    """Step after which the run resumed; equal to `step` if no step was repeated."""
    next_step_s: float
    """Seconds from the kill to the end of the next step. They include the start of another driver, if the kill ended
    the driver."""

    @property
    def lost_steps(self) -> int:
        """Return the number of finished steps that the run repeated."""
        return self.step - self.resumed_from


class Trial:
    """Run one training to its end, and start its driver again with the same command whenever a kill ended the driver.

    The driver is the process that the user starts. This process must have started the Ray cluster as well.

    Args:
        command: The driver's command. It must have the option --train.log-samples, for `history`.
        folder: The run's folder.
        cwd: The driver's working directory.
        env: The driver's environment, with the cluster's address.
        log: File to which the output of all drivers is appended.
        timeout_s: Maximum time of each wait for a step or for the end, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: RunFolder,
        *,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        timeout_s: float = 300,
    ):
        self._command, self._folder, self._timeout_s = list(command), folder, timeout_s
        self._cwd, self._env, self._log = cwd, dict(env), log

    def run(self, kills: Sequence[Kill] = ()) -> list[Recovery]:
        """Run to the end of the training, and return what followed each kill.

        Raises:
            RuntimeError: A driver fails for another reason than a kill, or a wait for a process or a step takes longer
                than `timeout_s`.
            subprocess.TimeoutExpired: A driver does not end within `timeout_s`.
        """
        recoveries = []
        with self._driver() as driver:
            for kill in kills:
                # Find the process before the wait, because the search takes as long as several steps.
                process = None if kill.victim in ("driver", "stop") else self._find(driver, kill.victim)
                self._wait_for_step(driver, kill.after_step)
                checkpoint = max((m.step for m in Checkpoints(self._folder).complete()), default=0)
                self._strike(driver, kill.victim, process)
                struck_at = time.monotonic()
                rows = self._folder.read_lines(METRICS)
                if kill.victim in ("driver", "stop"):
                    driver = self._restart(driver, kill.victim)
                    if kill.victim == "stop":
                        # After SIGTERM the driver has finished a step and saved a checkpoint.
                        rows = self._folder.read_lines(METRICS)
                        checkpoint = max(m.step for m in Checkpoints(self._folder).complete())
                recoveries.append(self._recovery(driver, kill.victim, checkpoint, rows, struck_at))
            self._expect_exit(driver, 0)
        return recoveries

    # --- processes ---

    @contextlib.contextmanager
    def _driver(self) -> Iterator["_Driver"]:
        """Start a driver. When the context ends, kill the current driver, which may be a restarted one."""
        driver = _Driver(self._start())
        try:
            yield driver
        finally:
            driver.process.kill()
            driver.process.wait()

    def _start(self) -> subprocess.Popen:
        with self._log.open("a") as log:
            return subprocess.Popen(
                self._command, cwd=self._cwd, env=self._env, stdout=log, stderr=subprocess.STDOUT
            )

    def _restart(self, driver: "_Driver", victim: Victim) -> "_Driver":
        """Wait for the end of the driver, and start it again."""
        # After SIGTERM a driver exits with status 143, which is 128 + 15.
        self._expect_exit(driver, 143 if victim == "stop" else -signal.SIGKILL)
        driver.process = self._start()
        return driver

    def _strike(self, driver: "_Driver", victim: Victim, process: psutil.Process | None) -> None:
        """Kill the victim, or send SIGTERM to the driver for `stop`."""
        if victim == "driver":
            driver.process.kill()
        elif victim == "stop":
            driver.process.send_signal(signal.SIGTERM)
        elif process is None or not process.is_running():
            # The process that was found before the wait has ended. Ray starts and ends processes that read data often.
            self._find(driver, victim).kill()
        else:
            process.kill()

    def _find(self, driver: "_Driver", victim: Victim) -> psutil.Process:
        """Find the victim among the descendants of this process. They include the cluster's processes."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if driver.process.poll() is not None:
                raise RuntimeError(self._end_message(driver))
            idle = None
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith(_TITLES[victim]):
                        return process
                    if title.startswith("ray::IDLE"):
                        idle = process
            # A process that reads data has the title ray::IDLE between two blocks of data. Once the training has
            # finished a step, an idle process is such a process.
            if victim == "data" and idle and self._folder.read_lines(METRICS):
                return idle
            time.sleep(_POLL_S)
        raise RuntimeError(f"no {victim} process in {self._timeout_s:g} s; the drivers' output: {self._log}")

    # --- waiting ---

    def _wait_for_step(self, driver: "_Driver", step: int) -> None:
        self._wait_until(driver, lambda: any(row["step"] >= step for row in self._folder.read_lines(METRICS)))

    def _recovery(
        self, driver: "_Driver", victim: Victim, checkpoint: int, rows: list[dict[str, Any]], struck_at: float
    ) -> Recovery:
        """Wait for the end of the first step after the kill, and return what followed the kill.

        Args:
            driver: The driver that runs now.
            victim: The process that was killed.
            checkpoint: Step of the newest complete checkpoint, as in `Recovery`.
            rows: The metrics of all steps that were finished at the kill, or for `stop` when the driver had ended.
            struck_at: Time of the kill by `time.monotonic`, in seconds.
        """
        self._wait_until(driver, lambda: len(self._folder.read_lines(METRICS)) > len(rows))
        next_step_s = time.monotonic() - struck_at
        if victim == "data":
            # Ray Data retries the lost work, and the ranks continue.
            last_step = max(row["step"] for row in rows)
            resumed_from = last_step
        else:
            # An attempt is one start of the training's workers. The new row may belong to a step that was in progress
            # at the kill, so wait for a row of the next attempt.
            attempt = max(row["attempt"] for row in rows)
            self._wait_until(
                driver, lambda: any(row["attempt"] > attempt for row in self._folder.read_lines(METRICS))
            )
            next_step_s = time.monotonic() - struck_at
            new_rows = self._folder.read_lines(METRICS)
            resumed_from = next(row["step"] for row in new_rows if row["attempt"] > attempt) - 1
            last_step = max(row["step"] for row in new_rows if row["attempt"] == attempt)
        return Recovery(
            victim=victim,
            step=last_step,
            checkpoint=checkpoint,
            resumed_from=resumed_from,
            next_step_s=round(next_step_s, 2),
        )

    def _wait_until(self, driver: "_Driver", done: Callable[[], bool]) -> None:
        """Wait until `done` returns true. Raise RuntimeError if the driver ends before, or after `timeout_s`."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            # Ask whether the driver has ended before calling `done`, so that `done` sees the last work of the driver.
            has_ended = driver.process.poll() is not None
            if done():
                return
            if has_ended:
                raise RuntimeError(self._end_message(driver))
            if time.monotonic() > deadline:
                raise RuntimeError(f"no progress in {self._timeout_s:g} s; the drivers' output: {self._log}")
            time.sleep(_POLL_S)

    def _end_message(self, driver: "_Driver") -> str:
        return f"the driver ended with {driver.process.returncode}; its output: {self._log}"

    def _expect_exit(self, driver: "_Driver", code: int) -> None:
        """Wait for the end of the driver. Raise RuntimeError if its exit status is not `code`."""
        found = driver.process.wait(self._timeout_s)
        if found != code:
            raise RuntimeError(f"the driver ended with {found}, not {code}; its output: {self._log}")


@dataclass
class _Driver:
    """Hold the driver's process, which a restart replaces."""

    process: subprocess.Popen


def random_kills(seed: int, steps: int, count: int = 1) -> list[Kill]:
    """Draw `count` random kills, by rising step. None follows one of the last four steps of the training.

    Args:
        seed: Seed of the choices. The same seed gives the same kills.
        steps: Number of steps of the training.
        count: Number of kills.
    """
    generator = random.Random(seed)
    after_steps = sorted(generator.sample(range(1, steps - 3), count))
    return [Kill(victim=generator.choice(VICTIMS), after_step=step) for step in after_steps]


def history(folder: RunFolder, steps: int) -> dict[str, Any]:
    """Return the losses, gradient norms and samples of a finished run's first `steps` steps, and its held-out loss.

    If a step was done several times, because the run resumed from an earlier step, the last time counts. The samples of
    a step are those of all ranks.

    Raises:
        ValueError: A sample occurs twice in an epoch.
    """
    rows = last_attempts(folder.read_lines(METRICS), steps)
    sample_rows = folder.read_lines(SAMPLES)
    last_attempt: dict[int, int] = {}
    for row in sample_rows:
        last_attempt[row["step"]] = max(row["attempt"], last_attempt.get(row["step"], 0))
    samples: dict[int, list[tuple]] = {}
    for row in sample_rows:
        if row["attempt"] == last_attempt[row["step"]]:
            samples.setdefault(row["step"], []).extend(map(tuple, row["samples"]))
    seen_in_epoch: dict[int, set[tuple]] = {}
    for row in rows:
        seen = seen_in_epoch.setdefault(row["epoch"], set())
        for sample in samples[row["step"]]:
            if sample in seen:
                raise ValueError(
                    f"{folder.uri}: {sample} occurs twice in epoch {row['epoch']}, last in step {row['step']}"
                )
            seen.add(sample)
    return {
        "steps": [row["step"] for row in rows],
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "samples": {step: sorted(step_samples) for step, step_samples in sorted(samples.items())},
        "held_out_loss": rows[-1].get("held_out_loss"),
    }


def python_env(cluster_env: Mapping[str, str], address: str) -> dict[str, str]:
    """Return a driver's environment: the cluster's environment and address, and unbuffered output."""
    return {**cluster_env, "RAY_ADDRESS": address, "PYTHONUNBUFFERED": "1"}


def command(job: str, options: Mapping[str, Any]) -> list[str]:
    """Return the command `python jobs/<job>.py tiny` with options by name. The value True stands for a flag."""
    words = [sys.executable, f"jobs/{job}.py", "tiny"]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def as_json(recoveries: Sequence[Recovery]) -> list[dict[str, Any]]:
    """Return recoveries as dictionaries for JSON."""
    return [json.loads(json.dumps(vars(r))) | {"lost_steps": r.lost_steps} for r in recoveries]
