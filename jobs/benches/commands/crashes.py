"""Define the options of `jobs/bench.py crashes`."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _checkout import CHECKOUT
from benches.results import BENCHMARKS, save_results

# Options of the trainings. The model is so small that a run takes seconds.
SMALL = {
    "model.hidden": 64,
    "model.layers": 2,
    "model.heads": 2,
    "model.kv-heads": 1,
    "model.mlp": 96,
    "train.budget-frames": 256,
    "train.evaluate-every": 0,
    "train.log-samples": True,
    "scale.collective-timeout-s": 60,
}


@dataclass(frozen=True, kw_only=True)
class BenchCrashes:
    """Kill trainings at random moments and compare their results with an undisturbed training.

    In each run one random process gets `kill -9`, or the driver gets SIGTERM, at a random moment. Exit status: 0 if
    every run ended with the same result as the undisturbed run, bit by bit, 1 if not.

    Example: python jobs/bench.py crashes --runs 20
    """

    runs: int = 20
    """Number of runs in which a process is killed."""
    seed: int = 0
    """Seed of the random choices: run N uses seed + N to choose the process and the moment of the kill."""
    steps: int = 60
    """Training steps of each run, at least 5, because no kill comes in the last four steps."""
    checkpoint_every: int = 10
    """Number of steps between checkpoints."""
    shards: str = "demo/corpus/shards"
    """Folder of stage 2's shards."""
    output: Path = BENCHMARKS / "crashes.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        from benches.crashes import Recovery, Trial, as_json, command, history, python_env, random_kills
        from xactor_platform.cluster.local import local_cluster
        from xactor_platform.training.run.folder import RunFolder

        with tempfile.TemporaryDirectory(prefix="xactor-bench-") as work, local_cluster(cpus=4) as cluster:
            env = python_env(cluster.env, cluster.address)

            def trial(name: str) -> tuple[Trial, RunFolder]:
                options = SMALL | {
                    "data.shards": os.path.abspath(self.shards),
                    "run.storage": work,
                    "run.name": name,
                    "train.steps": self.steps,
                    "train.checkpoint-every": self.checkpoint_every,
                }
                folder, log = RunFolder(work, name), Path(work, f"{name}.log")
                return Trial(command("train_stage2", options), folder, cwd=CHECKOUT, env=env, log=log), folder

            undisturbed, folder = trial("undisturbed")
            undisturbed.run()
            expected = history(folder, self.steps)
            recoveries: list[Recovery] = []
            equal_runs = 0
            for number in range(self.runs):
                killed, folder = trial(f"killed-{number}")
                (recovery,) = killed.run(random_kills(self.seed + number, self.steps))
                is_equal = history(folder, self.steps) == expected
                equal_runs += is_equal
                recoveries.append(recovery)
                print(f"{number + 1}/{self.runs}: {recovery}{'' if is_equal else '  DIFFERS'}", flush=True)
        # Seconds from each kill to the end of the next training step, by the kind of process that was killed.
        next_step_s: dict[str, list[float]] = {}
        for recovery in recoveries:
            next_step_s.setdefault(recovery.victim, []).append(recovery.next_step_s)
        print(
            f"{equal_runs} of {self.runs} runs ended with the same result as the undisturbed run, bit by bit"
        )
        save_results(
            self.output,
            {
                "runs": self.runs,
                "equal": equal_runs,
                "next_step_s": {victim: median(seconds) for victim, seconds in sorted(next_step_s.items())},
                "max_lost_steps": max(recovery.lost_steps for recovery in recoveries),
                "recoveries": as_json(recoveries),
            },
        )
        return 0 if equal_runs == self.runs else 1
