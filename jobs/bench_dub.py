"""Bulk dubbing beside a plain loop of `xactor animate` over the same rows, with one and with two render workers.

    python jobs/bench_dub.py [--model demo/model] [--clips demo/corpus/clips/test/test-0002.mp4]

Writes infra/benchmarks/dub.json, and prints it.
"""

import _checkout

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from xactor.media import read_frames
from benches.dub import bench_dub
from xactor_platform.cluster.environment import environment


@dataclass(frozen=True, kw_only=True)
class Args:
    """Which model, portraits and speech, and how much."""

    model: Path = _checkout.CHECKOUT / "demo/model"
    clips: tuple[Path, ...] = (_checkout.CHECKOUT / "demo/corpus/clips/test/test-0002.mp4",)
    """Their first frames are the portraits, their sounds the speech; rows take them by turns."""
    rows: int = 12
    motion_steps: int = 10
    render_steps: int = 1
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/dub.json"


def main() -> int:
    args = tyro.cli(Args)
    options = {"motion_steps": args.motion_steps, "render_steps": args.render_steps, "render_cfg": 1.0}
    with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
        portraits = []
        for number, clip in enumerate(args.clips):
            portraits.append(str(Path(folder, f"{number}.png")))
            Image.fromarray(next(read_frames(clip))).save(portraits[-1])
        figures = bench_dub(
            model=str(args.model.absolute()),
            images=portraits,
            audios=[str(clip) for clip in args.clips],
            rows=args.rows,
            folder=Path(folder, "bench"),
            options=options,
        )
    figures = {
        "command": " ".join(["python", "jobs/bench_dub.py", *sys.argv[1:]]),
        **environment(),
        **figures,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
