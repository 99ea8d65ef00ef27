"""Measures rendering: python jobs/bench_render.py [--size tiny|sd15] [--image-sizes 64 128] [--steps 4 25]

No arguments: the tiny renderer on a CPU, SD1.5's size at 512 px where there is a GPU.
"""

import _checkout

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from xactor_platform.cluster.environment import environment
from benches.render import Case, measure, measure_lengths


@dataclass(frozen=True, kw_only=True)
class BenchRender:
    """Frames per second and peak memory: by window, steps and size, with and without the reference's cache."""

    size: Literal["tiny", "sd15"] = "sd15" if torch.cuda.is_available() else "tiny"
    image_sizes: tuple[int, ...] = (512,) if torch.cuda.is_available() else (64,)
    windows: tuple[int, ...] = (8, 16)
    steps: tuple[int, ...] = (4, 25)
    rounds: int = 3
    model: Path | None = None
    """A pipeline's folder: with it and a portrait, videos of `seconds` are made whole, for their memory and seams."""
    image: Path | None = None
    seconds: tuple[float, ...] = (20, 120)
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/render.json"


def main(args: BenchRender) -> None:
    cases = [
        Case(
            size=args.size, image_size=image, window_frames=window, steps=steps, kind=kind, rounds=args.rounds
        )
        for image in args.image_sizes
        for window in args.windows
        for steps in args.steps
        for kind in ("cached", "uncached", "animatediff")
    ]
    machine = environment()
    print(f"{args.size} on {machine['device']}\n  px  window  steps  reference    frames/s  peak MB")
    rows, lengths = [], []
    for row in measure(cases):
        rows.append(row)
        print(
            f"{row['image_size']:>4}  {row['window_frames']:>6}  {row['steps']:>5}  {row['kind']:<11}"
            f"  {row['frames_per_s']:>8.2f}  {row['peak_mb']:>7.0f}",
            flush=True,
        )
    if args.model and args.image:
        for row in measure_lengths(str(args.model), str(args.image), args.seconds, steps=4):
            lengths.append(row)
            print(
                f"{row['seconds']:g} s: {row['peak_mb']:.0f} MB, {row['frames_per_s']:.1f} frames/s, "
                f"change from frame to frame {row['at_seams']:.2f} at seams, {row['elsewhere']:.2f} elsewhere",
                flush=True,
            )
    report = {
        "command": " ".join(["python", "jobs/bench_render.py", *sys.argv[1:]]),
        "environment": machine,
        "rows": rows,
        "lengths": lengths,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(args.output)


if __name__ == "__main__":
    main(tyro.cli(BenchRender))
