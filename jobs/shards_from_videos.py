"""Make training shards from any folder of talking videos, on one machine.

    ray job submit --working-dir . -- python jobs/shards_from_videos.py \\
        --videos /data/talking --output s3://bucket/corpus/shards --crops 512

The job cuts the videos into clips that show one face in one shot, as jobs/curate.py does, and drops clips of bad
quality. Only lip-sync is not judged. It writes shards for stage 2. With --crops it also writes shards for stage 1, next
to them. The command also runs without `ray job submit`. It needs no cluster: it works on all cores of its machine.
report.jsonl has a line for each clip, and for each video that gave none. Exit status: 0 all videos used, 2 bad
arguments or no usable video, 3 some videos not used.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.command_line import run_command
from xactor_platform.curation.messages import Fate
from xactor_platform.precompute.talking_videos import shards_from_videos


@dataclass(frozen=True, kw_only=True)
class ShardsFromVideos:
    """Choose the videos and the shards. The defaults use the demo corpus's clips as if they were recorded videos."""

    videos: str = "demo/corpus/clips"
    """Folder or URI of videos, or a glob pattern in quotes. Subfolders are searched too."""
    output: str = "demo/from_videos/shards"
    """Folder or URI for stage 2's shards. The audio encoder is saved next to it."""
    crops: int = 0
    """Side of the face crops for stage 1's video shards, in pixels, even and at least 32; 0 makes none."""
    crops_output: str | None = None
    """Folder or URI for stage 1's video shards. By default videos/ next to the output."""
    landmarks: Path | None = None
    """MediaPipe .task file of the landmark model. By default the landmark model in this package."""
    held_out: float = 0.2
    """Speakers to hold out: a number of speakers if >= 1, a share of all speakers if below 1."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model that computes the audio features. By default the features are log-mel energies."""
    seed: int = 0
    """Seed for the choice of held-out speakers."""
    workers: int | None = None
    """Number of processes, at least 1. By default one per core."""


def main() -> int:
    args = tyro.cli(ShardsFromVideos, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {args.videos} into {args.output}")
    corpus = shards_from_videos(**vars(args), progress=print_fate)
    kept = [fate for fate in corpus.fates if fate.status == "kept"]
    count = len({fate.video for fate in corpus.fates})
    print(
        f"{count - len(corpus.unused)} of {count} videos, {len(kept)} clips, "
        f"{sum(fate.seconds for fate in kept) / 60:.1f} min; shards and report.jsonl in {corpus.shards}"
    )
    return 3 if corpus.unused else 0


def print_fate(fate: Fate) -> None:
    """Print whether a clip was kept, its split (train or test) and its place in the video; if it was not, why."""
    why = f": {fate.reason}: {fate.detail}" if fate.reason else ""
    print(f"{fate.status:7} {fate.split:5} {fate.start_s:8.2f} to {fate.end_s:8.2f} s  {fate.video}{why}")


if __name__ == "__main__":
    run_command(main)
