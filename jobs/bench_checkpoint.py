"""Measures how long a step waits for a checkpoint: python jobs/bench_checkpoint.py [--storage URI] [--rounds N]"""

import _checkout

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import tyro

from xactor_platform.cluster.environment import environment
from benches.checkpoint import CheckpointBench, measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCheckpoint:
    """A state of 1.1 GB, saved beside the training and saved while it waits."""

    bench: tyro.conf.OmitArgPrefixes[CheckpointBench] = dataclasses.field(default_factory=CheckpointBench)
    storage: str | None = None
    """Where the checkpoints go: a local folder or a URI; by default a folder that is removed afterwards."""
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/checkpoint.json"


def main(args: BenchCheckpoint) -> None:
    with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
        measured = measure(args.bench, args.storage or folder)
    report = {
        "command": " ".join(["python", "jobs/bench_checkpoint.py", *sys.argv[1:]]),
        "environment": environment(),
        **measured,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{measured['state_bytes'] / 1e9:.2f} GB: a step waits {measured['blocked_s']:.2f} s, "
        f"{measured['blocked_share']:.1%} of a synchronous save ({measured['synchronous_s']:.2f} s), "
        f"{measured['blocked_share_of_plain']:.1%} of DeepSpeed's own and a copy ({measured['plain_s']:.2f} s); "
        f"the first {measured['first_blocked_s']:.2f} s\n"
        f"a step takes {measured['step_s']:.2f} s, beside a save {measured['step_beside_s']:.2f} s\n{args.output}"
    )


if __name__ == "__main__":
    main(tyro.cli(BenchCheckpoint))
