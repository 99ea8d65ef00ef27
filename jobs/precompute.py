"""Make the motion shards for stage 2 from video shards: motion latents of the pictures and features of the sound.

    ray job submit --working-dir . -- python jobs/precompute.py \\
        --videos s3://bucket/videos --model s3://bucket/runs/stage1/export --output s3://bucket/latents/shards

The command also runs without `ray job submit`: it starts Ray, or joins the cluster of RAY_ADDRESS. If the same command
runs again, it makes only the shards that are missing.
"""

import _checkout

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.bulk.pool import Pool
from xactor_platform.cluster.connect import connect
from xactor_platform.data.index import LatentSource
from xactor_platform.precompute.latents import ACTORS, precompute


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Choose the shards and the actors. The defaults encode the demo corpus with the demo's trained motion encoder."""

    videos: str = "demo/corpus/videos"
    """Folder or URI of video shards."""
    model: str = "demo/runs/stage1/export"
    """Folder or URI of stage 1's export, which holds motion_encoder/."""
    output: str = "demo/latents/shards"
    """Folder or URI for the motion shards. The encoders are saved next to this folder."""
    latents: LatentSource = "encoder"
    """Source of the motion latents: `encoder` is the model's motion encoder, applied to the pictures; `controls` means
    the clips' control tracks (blendshapes and head pose for each frame), from which small renderers learn."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model that computes the audio features. By default the features are log-mel energies."""
    pool: Pool = ACTORS
    """Size of the pool of actors. Each actor decodes on as many threads as it has CPUs. On a cluster with GPUs each
    actor has one GPU and its share of the CPUs, unless the pool sets the number of GPUs."""
    max_bad_fraction: float = 0.0
    """Maximum share of the videos that may be unusable, within 0..1. If more are unusable, the job fails."""
    start_timeout_s: int = 900
    """Maximum time to wait for nodes, in seconds."""


def main() -> int:
    args = tyro.cli(Precompute, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {args.videos} into {args.output}")
    connect(_checkout.PY_MODULES)
    result = precompute(**vars(args), progress=print_now)
    print("\n".join(result.summary()))
    return 0


if __name__ == "__main__":
    run_command(main)
