"""Bulk dubbing beside a plain loop of `xactor animate` over the same rows, with one and with two render workers.

    python jobs/bench_dub.py --model demo/model --image face.png --audio speech.wav

Writes the figures to --output as JSON, and prints them.
"""

import _checkout  # noqa: F401

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor_platform.dubbing.bench import bench_dub


@dataclass(frozen=True, kw_only=True)
class Args:
    """Rows take the images and audios by turns."""

    model: str
    image: tuple[str, ...]
    audio: tuple[str, ...]
    rows: int = 24
    motion_steps: int = 10
    render_steps: int = 2
    output: Path = Path("infra/benchmarks/dub.json")


def main() -> int:
    args = tyro.cli(Args)
    options = {"motion_steps": args.motion_steps, "render_steps": args.render_steps, "render_cfg": 1.0}
    with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
        figures = bench_dub(
            model=str(Path(args.model).absolute()),
            images=args.image,
            audios=args.audio,
            rows=args.rows,
            folder=Path(folder, "bench"),
            options=options,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
