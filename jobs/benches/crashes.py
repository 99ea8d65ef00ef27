"""Kill a training on purpose, in all the places where it can die, and compare it with an undisturbed one."""

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

Victim = Literal["worker", "data", "controller", "driver", "stop"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
_TITLES = {"worker": "ray::RayTrainWorker", "data": "ray::MapBatches", "controller": "ray::TrainController"}
_LOOK_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Describe one kill."""

    victim: Victim
    """The process that gets `kill -9`; `stop` sends SIGTERM to the driver instead."""
    after_step: int
    """Steps that are finished before the kill."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Describe what followed a kill."""

    victim: Victim
    """The process that was killed."""
    step: int
    """The last step that was finished before."""
    checkpoint: int
    """Step of the newest complete checkpoint at the kill."""
    resumed_from: int
    """Step that the run resumed from; `step` if it lost nothing."""
    next_step_s: float
    """Seconds until the next step was finished, with the start of another driver if the driver was killed."""

    @property
    def lost_steps(self) -> int:
        return self.step - self.resumed_from


class Trial:
    """Start drivers of one run by the same command again and again until the run is finished.

    Args:
        command: The driver's command; it must have --train.log-samples.
        folder: The run's folder.
        cwd: The driver's working directory.
        env: The driver's environment, with the cluster's address.
        log: File that gets the drivers' output.
        timeout_s: Seconds of each wait, for a step or for the end.
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
        """Run to the end of the training.

        Raises:
            RuntimeError: A driver fails for another reason than a kill.
        """
        recoveries = []
        with self._driver() as driver:
            for kill in kills:
                # Found before the wait, because the search takes as long as some steps.
                victim = None if kill.victim in ("driver", "stop") else self._victim(driver, kill.victim)
                self._wait(driver, kill.after_step)
                checkpoint = max((m.step for m in Checkpoints(self._folder).complete()), default=0)
                self._strike(driver, kill.victim, victim)
                struck = time.monotonic()
                rows = self._folder.read_lines(METRICS)
                if kill.victim in ("driver", "stop"):
                    driver = self._again(driver, kill.victim)
                    if kill.victim == "stop":
                        rows = self._folder.read_lines(METRICS)
                        checkpoint = max(m.step for m in Checkpoints(self._folder).complete())
                recoveries.append(self._recovery(driver, kill.victim, checkpoint, rows, struck))
            self._expect(driver, 0)
        return recoveries

    # --- processes ---

    @contextlib.contextmanager
    def _driver(self) -> Iterator["_Driver"]:
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

    def _again(self, driver: "_Driver", victim: Victim) -> "_Driver":
        self._expect(driver, 143 if victim == "stop" else -signal.SIGKILL)
        driver.process = self._start()
        return driver

    def _strike(self, driver: "_Driver", victim: Victim, process: psutil.Process | None) -> None:
        if victim == "driver":
            driver.process.kill()
        elif victim == "stop":
            driver.process.send_signal(signal.SIGTERM)
        elif process is None or not process.is_running():
            # Processes that read data come and go.
            self._victim(driver, victim).kill()
        else:
            process.kill()

    def _victim(self, driver: "_Driver", victim: Victim) -> psutil.Process:
        """Find the victim among the descendants of this process, which also started the cluster."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if driver.process.poll() is not None:
                raise RuntimeError(self._ended(driver))
            idle = None
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith(_TITLES[victim]):
                        return process
                    if title.startswith("ray::IDLE"):
                        idle = process
            # Between two blocks a process that reads them is idle.
            if victim == "data" and idle and self._folder.read_lines(METRICS):
                return idle
            time.sleep(_LOOK_S)
        raise RuntimeError(f"no {victim} to kill in {self._timeout_s:g} s; the drivers' output: {self._log}")

    # --- waiting ---

    def _wait(self, driver: "_Driver", step: int) -> None:
        self._until(driver, lambda: any(row["step"] >= step for row in self._folder.read_lines(METRICS)))

    def _recovery(
        self, driver: "_Driver", victim: Victim, checkpoint: int, rows: list[dict[str, Any]], struck: float
    ) -> Recovery:
        self._until(driver, lambda: len(self._folder.read_lines(METRICS)) > len(rows))
        seconds = time.monotonic() - struck
        # The victim may still have written a step that was in progress.
        if victim != "data":
            attempt = max(row["attempt"] for row in rows)
            self._until(driver, lambda: any(r["attempt"] > attempt for r in self._folder.read_lines(METRICS)))
            seconds = time.monotonic() - struck
            now = self._folder.read_lines(METRICS)
            first = next(row["step"] for row in now if row["attempt"] > attempt)
            last = max(row["step"] for row in now if row["attempt"] == attempt)
        else:
            last = max(row["step"] for row in rows)
            first = last + 1
        return Recovery(
            victim=victim,
            step=last,
            checkpoint=checkpoint,
            resumed_from=first - 1,
            next_step_s=round(seconds, 2),
        )

    def _until(self, driver: "_Driver", done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            # Polled before the check, so that the check sees the driver's last work.
            ended = driver.process.poll() is not None
            if done():
                return
            if ended:
                raise RuntimeError(self._ended(driver))
            if time.monotonic() > deadline:
                raise RuntimeError(f"no progress in {self._timeout_s:g} s; the drivers' output: {self._log}")
            time.sleep(_LOOK_S)

    def _ended(self, driver: "_Driver") -> str:
        return f"the driver ended with {driver.process.returncode}; its output: {self._log}"

    def _expect(self, driver: "_Driver", code: int) -> None:
        found = driver.process.wait(self._timeout_s)
        if found != code:
            raise RuntimeError(f"the driver ended with {found}, not {code}; its output: {self._log}")


@dataclass
class _Driver:
    process: subprocess.Popen


def random_kills(seed: int, steps: int, count: int = 1) -> list[Kill]:
    """Draw `count` kills of any kind, after any steps but the last ones. The same seed gives the same kills."""
    generator = random.Random(seed)
    after = sorted(generator.sample(range(1, steps - 3), count))
    return [Kill(victim=generator.choice(VICTIMS), after_step=step) for step in after]


def history(folder: RunFolder, steps: int) -> dict[str, Any]:
    """Return each step's loss and samples of a finished run, by the last attempt and over all ranks.

    Raises:
        ValueError: A sample is in an epoch twice.
    """
    rows = last_attempts(folder.read_lines(METRICS), steps)
    logged = folder.read_lines(SAMPLES)
    last: dict[int, int] = {}
    for row in logged:
        last[row["step"]] = max(row["attempt"], last.get(row["step"], 0))
    samples: dict[int, list[tuple]] = {}
    for row in logged:
        if row["attempt"] == last[row["step"]]:
            samples.setdefault(row["step"], []).extend(map(tuple, row["samples"]))
    epochs: dict[int, set[tuple]] = {}
    for row in rows:
        seen = epochs.setdefault(row["epoch"], set())
        for sample in samples[row["step"]]:
            if sample in seen:
                raise ValueError(
                    f"{folder.uri}: {sample} twice in epoch {row['epoch']}, last in step {row['step']}"
                )
            seen.add(sample)
    return {
        "steps": [row["step"] for row in rows],
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "samples": {step: sorted(of_step) for step, of_step in sorted(samples.items())},
        "held_out_loss": rows[-1].get("held_out_loss"),
    }


def python_env(cluster_env: Mapping[str, str], address: str) -> dict[str, str]:
    """Return a driver's environment."""
    return {**cluster_env, "RAY_ADDRESS": address, "PYTHONUNBUFFERED": "1"}


def command(job: str, options: Mapping[str, Any]) -> list[str]:
    """Return the command `python jobs/<job>.py tiny` with options by their names; True is a flag."""
    given = [
        part
        for name, value in options.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    return [sys.executable, f"jobs/{job}.py", "tiny", *given]


def as_json(recoveries: Sequence[Recovery]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(vars(r))) | {"lost_steps": r.lost_steps} for r in recoveries]
