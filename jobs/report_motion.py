"""Report what a trained motion model has learned, on held-out clips of the demo's kind.

    ray job submit --working-dir . -- python jobs/report_motion.py \\
        --run /data/runs/stage2 --shards /data/latents --output /data/report

Also plain. Writes report.json, loss.png and lips.png; with --minutes 10 also drift.json and drift.png, of one rollout
that long, and with --few-steps few_steps.json, of ways of sampling beside the default's 50 steps.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import _checkout  # noqa: F401

import tyro

from xactor.motion import SamplingConfig
from xactor_platform.evaluation.drift import measure_drift
from xactor_platform.evaluation.few_steps import compare_steps, table
from xactor_platform.evaluation.motion_report import report_motion


@dataclass(frozen=True, kw_only=True)
class Args:
    """A run's folder, its shards, where to write, and how to sample."""

    run: str = "demo/runs/stage2"
    shards: str = "demo/latents/shards"
    output: Path = Path("demo/report/motion")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    max_clips: int = 8
    minutes: float = 0
    """Of a long rollout, whose last minutes are held against its first; 0 leaves it out."""
    few_steps: bool = False
    """Also holds fewer steps, and pipelined denoising, against 50 steps, whatever --sampling says of both."""


def main() -> None:
    args = tyro.cli(Args)
    try:
        report = report_motion(
            args.run, args.shards, args.output, config=args.sampling, seed=args.seed, max_clips=args.max_clips
        )
        print(report.table())
        print(f"written: {args.output}/report.json, loss.png, lips.png")
        if args.minutes:
            drift = measure_drift(
                args.run, args.shards, args.output, minutes=args.minutes, config=args.sampling, seed=args.seed
            )
            print(drift.table())
            print(f"written: {args.output}/drift.json, drift.png")
        if args.few_steps:
            ways = compare_steps(
                args.run, args.shards, args.output,
                config=args.sampling, seed=args.seed, max_clips=args.max_clips,
            )  # fmt: skip
            print(table(ways))
            print(f"written: {args.output}/few_steps.json")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
