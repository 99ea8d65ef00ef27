"""Measures the data path: python jobs/bench_data.py [--shards URI] [--workers N]"""

import _checkout

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from benches import data as bench_data
from xactor_platform.cluster.environment import environment
from xactor_platform.data.plan import PlanConfig


@dataclass(frozen=True, kw_only=True)
class BenchData:
    """The planned stream beside a plain webdataset + DataLoader over the same shards, and the paper's plan."""

    shards: str | None = None
    """Local shards to read; without it, synthetic ones in a temporary folder."""
    size_gb: float = 1.0
    """Of the synthetic shards."""
    audio_layers: int = 3
    """Of the synthetic shards."""
    workers: tuple[int, ...] = (1, 2)
    """Reading processes, one comparison each."""
    rounds: int = 3
    epochs: int = 3
    """Of each round."""
    budget_frames: int = 4096
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/data.json"


def main(args: BenchData) -> None:
    config = PlanConfig(budget_frames=args.budget_frames)
    report = {
        "command": " ".join(["python", "jobs/bench_data.py", *sys.argv[1:]]),
        "environment": environment(),
        "plan_of_the_papers_corpus": bench_data.measure_plan(config),
        "streams": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        if not args.shards:
            bench_data.write_synthetic(
                folder, int(args.size_gb * 1e9), args.audio_layers, config.context_frames
            )
        for workers in args.workers:
            found = bench_data.compare(
                args.shards or folder, workers=workers, rounds=args.rounds, epochs=args.epochs, config=config
            )
            report["streams"].append(found)
            print(
                f"{workers} reading: {found['frames_per_s']['planned_stream']:,.0f} frames/s, webdataset "
                f"{found['frames_per_s']['webdataset']:,.0f}: ratio {found['ratio']:.2f}, "
                f"{found['times_an_a100_rank']:.0f} times an A100 rank",
                flush=True,
            )
    plan = report["plan_of_the_papers_corpus"]
    print(
        f"plan of {plan['clips']:,} clips: {plan['seconds']:.2f} s, {plan['peak_mb']:.0f} MB, "
        f"padding {plan['padding']:.2%}"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main(tyro.cli(BenchData))
