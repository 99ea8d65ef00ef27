"""Kills a training at random, again and again, and compares it with one left alone:

python jobs/trial_crashes.py --runs 20
"""

import _checkout

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import tyro

from xactor_platform.cluster.local import local_cluster
from xactor_platform.cluster.environment import environment
from benches.crashes import (
    Recovery,
    Trial,
    as_json,
    command,
    history,
    python_env,
    random_kills,
)
from xactor_platform.training.run.folder import RunFolder

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialCrashes:
    """Each run has one kill -9 (or one SIGTERM) at a random moment of a random victim, by its number's seed."""

    runs: int = 20
    seed: int = 0
    steps: int = 60
    checkpoint_every: int = 10
    shards: str = "demo/corpus/shards"
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/crashes.json"


def main(args: TrialCrashes) -> None:
    with tempfile.TemporaryDirectory(prefix="xactor-trial-") as work, local_cluster(cpus=4) as cluster:
        env = python_env(cluster.env, cluster.address)
        shards = os.path.abspath(args.shards)

        def trial(name: str) -> tuple[Trial, RunFolder]:
            options = SMALL | {
                "data.shards": shards,
                "run.storage": work,
                "run.name": name,
                "train.steps": args.steps,
                "train.checkpoint-every": args.checkpoint_every,
            }
            folder = RunFolder(work, name)
            started = command("train_stage2", options)
            return Trial(
                started, folder, cwd=_checkout.CHECKOUT, env=env, log=Path(work, f"{name}.log")
            ), folder

        alone, folder = trial("alone")
        alone.run()
        expected, recoveries, equal = history(folder, args.steps), list[Recovery](), 0
        for number in range(args.runs):
            killed, folder = trial(f"killed-{number}")
            (recovery,) = killed.run(random_kills(args.seed + number, args.steps))
            same = history(folder, args.steps) == expected
            equal += same
            recoveries.append(recovery)
            print(f"{number + 1}/{args.runs}: {recovery}{'' if same else '  DIFFERS'}", flush=True)
    by_victim: dict[str, list[float]] = {}
    for recovery in recoveries:
        by_victim.setdefault(recovery.victim, []).append(recovery.next_step_s)
    report = {
        "command": " ".join(["python", "jobs/trial_crashes.py", *sys.argv[1:]]),
        "environment": environment(),
        "runs": args.runs,
        "equal": equal,
        "next_step_s": {victim: median(seconds) for victim, seconds in sorted(by_victim.items())},
        "most_lost_steps": max(recovery.lost_steps for recovery in recoveries),
        "recoveries": as_json(recoveries),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{equal} of {args.runs} ended as the run left alone, bit by bit\n{args.output}")
    sys.exit(0 if equal == args.runs else 1)


if __name__ == "__main__":
    main(tyro.cli(TrialCrashes))
