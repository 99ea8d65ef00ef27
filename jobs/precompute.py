"""Makes stage 2's motion shards from video shards, by a trained motion encoder.

    ray job submit --working-dir . -- python jobs/precompute.py \\
        --videos s3://bucket/videos --model s3://bucket/runs/stage1/export --output s3://bucket/latents/shards

Also plain: it starts Ray by itself, or joins the cluster of RAY_ADDRESS. The same command again makes the shards that
are missing.
"""

import _checkout

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor_platform.precompute.latents import ACTORS, precompute
from xactor_platform.bulk.pool import Pool
from xactor_platform.cluster.connect import connect


@dataclass(frozen=True, kw_only=True)
class Args:
    """Video shards to motion shards. No arguments: the demo's."""

    videos: str = "demo/corpus/videos"
    """Folder or URI of video shards."""
    model: str = "demo/runs/stage1/export"
    """Folder or URI that holds motion_encoder/."""
    output: str = "demo/latents/shards"
    """Folder or URI of the motion shards; both encoders come beside it."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model; log-mel features without it."""
    pool: Pool = ACTORS
    """The actors. Each decodes on as many threads as it has CPUs. On a cluster with GPUs each has one, and its share of
    the CPUs."""
    max_bad_fraction: float = 0.0
    """How much of the videos may be unusable."""
    start_timeout_s: int = 900
    """How long to wait for nodes."""


def main() -> int:
    args = tyro.cli(Args)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {args.videos} into {args.output}")
    try:
        connect(_checkout.PY_MODULES)
        result = precompute(**vars(args), progress=lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        print(f"precompute: {error}", file=sys.stderr)
        return 2
    print("\n".join(result.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
