"""Measures rendering: python jobs/bench_render.py [--size tiny|sd15] [--image-sizes 64] [--windows 8 16] [--steps 4]

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

from xactor_platform.bench_data import environment
from xactor_platform.bench_render import Case, measure


@dataclass(frozen=True, kw_only=True)
class BenchRender:
    """Frames per second and peak memory: by window, steps and size, with and without the reference's cache."""

    size: Literal["tiny", "sd15"] = "sd15" if torch.cuda.is_available() else "tiny"
    image_sizes: tuple[int, ...] = (512,) if torch.cuda.is_available() else (64, 128)
    windows: tuple[int, ...] = (8, 16)
    steps: tuple[int, ...] = (4, 25)
    rounds: int = 3
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    rows = measure(cases)
    report = {
        "command": " ".join(["python", "jobs/bench_render.py", *sys.argv[1:]]),
        "environment": environment(),
        "device": device,
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{args.size} on {device}\n  px  window  steps  reference    frames/s  peak MB")
    for row in rows:
        print(
            f"{row['image_size']:>4}  {row['window_frames']:>6}  {row['steps']:>5}  {row['kind']:<11}"
            f"  {row['frames_per_s']:>8.2f}  {row['peak_mb']:>7.0f}"
        )
    print(args.output)


if __name__ == "__main__":
    main(tyro.cli(BenchRender))
