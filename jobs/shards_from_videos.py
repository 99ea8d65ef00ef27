"""Make training shards from any folder of talking videos, with a model that finds facial landmarks.

    ray job submit --working-dir . -- python jobs/shards_from_videos.py \\
        --videos /data/talking --output s3://bucket/corpus/shards --crops 512

The job writes shards for stage 2. With --crops it also writes shards for stage 1, next to them. The command also runs
without `ray job submit`. It needs no cluster: it works on all cores of its machine. report.jsonl has a line for each
video. Exit status: 0 all videos used, 2 bad arguments or no usable video, 3 some videos not used.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.command_line import run_command
from xactor.rates import FPS
from xactor_platform.precompute.talking_videos import VideoResult, shards_from_videos


@dataclass(frozen=True, kw_only=True)
class ShardsFromVideos:
    """Choose the videos and the shards. The defaults use the demo corpus's clips as if they were recorded videos."""

    videos: str = "demo/corpus/clips"
    """Folder of videos, or a glob pattern in quotes."""
    output: str = "demo/from_videos/shards"
    """Folder or URI for stage 2's shards. The audio encoder is saved next to it."""
    crops: int = 0
    """Side of the face crops for stage 1's video shards, in pixels, even and at least 32; 0 makes none."""
    crops_output: str | None = None
    """Folder or URI for stage 1's video shards. By default videos/ next to the output."""
    landmarks: Path | None = None
    """MediaPipe .task file of the landmark model. By default the landmark model in this package."""
    held_out: float = 0.2
    """Videos to hold out: a number of videos if >= 1, a share of all videos if below 1."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model that computes the audio features. By default the features are log-mel energies."""
    seed: int = 0
    """Seed for the choice of held-out videos."""
    workers: int | None = None
    """Number of processes, at least 1. By default one per core."""


def main() -> int:
    args = tyro.cli(ShardsFromVideos, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {args.videos} into {args.output}")
    corpus = shards_from_videos(**vars(args), progress=print_result)
    used = [result for result in corpus.results if result.status == "ok"]
    minutes = sum(result.frames for result in used) / FPS / 60
    print(
        f"{len(used)} of {len(corpus.results)} videos, {minutes:.1f} min; "
        f"shards and report.jsonl in {corpus.shards}"
    )
    return 3 if corpus.failed else 0


def print_result(result: VideoResult) -> None:
    """Print whether a video was used, its split (such as train or test) and its length; if it was not used, why."""
    reason = f": {result.reason}" if result.reason else ""
    print(f"{result.status:6} {result.split:5} {result.frames:6d} frames  {result.file}{reason}")


if __name__ == "__main__":
    run_command(main)
