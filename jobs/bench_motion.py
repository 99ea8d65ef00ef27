"""Measures the motion engine: python jobs/bench_motion.py [--sizes 3M 15M] [--steps 10 20 50] [--minutes 60]

No arguments: small models on a CPU; on a GPU also 0.5B and 7B, in bf16.
"""

import _checkout

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from xactor.motion import SamplingConfig
from benches import motion as bench_motion
from xactor_platform.cluster.environment import environment

GPU = torch.cuda.is_available()


@dataclass(frozen=True, kw_only=True)
class BenchMotion:
    """The cache, the batching of streams, rates by size and steps, and the first minute beside the last."""

    sizes: tuple[str, ...] = ("15M", "0.5B", "7B") if GPU else ("3M", "15M", "90M")
    """Of the rates."""
    steps: tuple[int, ...] = (10, 20, 50)
    cache_size: str = "7B" if GPU else "90M"
    batching_size: str = "7B" if GPU else "15M"
    streams: int = 8
    minutes: int = 60
    rounds: int = 3
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/motion.json"


def main(args: BenchMotion) -> None:
    cache = bench_motion.compare_cache(args.cache_size, steps=50, rounds=args.rounds)
    print(
        f"cache ({cache['size']}): a chunk after {cache['context_frames'] - cache['chunk_frames']} frames takes "
        f"{cache['cached_s']:.2f} s, {cache['uncached_s']:.2f} s without: {cache['uncached_over_cached']:.1f} times",
        flush=True,
    )
    batching = bench_motion.compare_batching(
        args.batching_size,
        streams=args.streams, chunks=4, steps=20, rounds=args.rounds, max_batch=args.streams,
    )  # fmt: skip
    print(
        f"{batching['streams']} streams ({batching['size']}): frames/s, seconds to the first chunk p50, p95"
    )
    for way in ("engine", "one_after_another", "whole_batches"):
        row = batching[way]
        firsts = f"{row['first_chunk_p50_s']:>9.2f}{row['first_chunk_p95_s']:>9.2f}"
        print(f"  {way:<18}{row['frames_per_s']:>8.0f}{firsts}")
    print(f"  throughput over the better: {batching['throughput_over_the_better']:.3f}", flush=True)
    configs = [SamplingConfig(steps=steps) for steps in args.steps]
    configs += [SamplingConfig(steps=steps, groups=4) for steps in args.steps if steps < max(args.steps)]
    rates = []
    for size in args.sizes:
        for config in configs:
            rates.append(row := bench_motion.measure_rate(size, config=config, rounds=args.rounds))
            print(
                f"{row['size']:>5} {row['steps']:>3} steps, {row['groups']} groups: {row['frames_per_s']:>8.1f} "
                f"frames/s, real-time factor {row['real_time_factor']:.3f}, "
                f"first frames after {row['first_frames_s']:.3f} s",
                flush=True,
            )
    length = bench_motion.measure_length("3M", minutes=args.minutes, steps=2)
    print(
        f"{length['minutes']} minutes: a chunk of the last takes {length['late_over_early_s']:.3f} of the second's "
        f"time and {length['late_over_early_mb']:.3f} of its memory"
    )
    report = {
        "command": " ".join(["python", "jobs/bench_motion.py", *sys.argv[1:]]),
        "environment": environment(),
        "cache": cache,
        "batching": batching,
        "rates": rates,
        "length": length,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(args.output)


if __name__ == "__main__":
    main(tyro.cli(BenchMotion))
