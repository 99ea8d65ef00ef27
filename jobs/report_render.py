"""What stage 1 has learned, on held-out clips: generated against true frames, and what its latents hold.

    ray job submit --working-dir . -- python jobs/report_render.py --model runs/stage1/export --videos s3://b/videos

Also plain. Needs no cluster. No arguments: the demo's model on the demo corpus.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from xactor.render import RenderConfig
from xactor_platform.evaluation.render_report import report_render


@dataclass(frozen=True, kw_only=True)
class Args:
    """What a renderer has learned."""

    model: str = "demo/runs/stage1/export"
    """Folder of stage 1's export."""
    videos: str = "demo/corpus/videos"
    """URI of video shards; the held-out ones are used."""
    output: Path = Path("demo/report/render")
    """Folder for report.json and faces.png."""
    windows: int = 2
    """Windows that are rendered of each clip."""
    max_clips: int = 8
    """The longest held-out clips, so many."""
    render: RenderConfig = field(default_factory=RenderConfig)
    seed: int = 0


def main() -> int:
    args = tyro.cli(Args)
    try:
        report = report_render(
            args.model,
            args.videos,
            args.output,
            config=args.render,
            windows=args.windows,
            max_clips=args.max_clips,
            seed=args.seed,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"report_render: {error}", file=sys.stderr)
        return 2
    print(report.table())
    print(f"written: {args.output}/report.json, faces.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
