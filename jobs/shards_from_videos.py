"""Makes shards from any folder of talking videos, by a landmark model; see report.jsonl for each one's fate.

    ray job submit --working-dir . -- python jobs/shards_from_videos.py \\
        --videos /data/talking --output s3://bucket/shards --crops 512

The shards are stage 2's; with --crops, stage 1's come beside them. Also plain: `python jobs/shards_from_videos.py
--videos DIR --output DIR`. Needs no cluster: it works with all cores of the machine it is on. Exit 0 all videos used,
3 some could not be, 2 bad arguments or nothing usable.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.rates import FPS
from xactor_platform.precompute.talking_videos import VideoFate, shards_from_videos


@dataclass(frozen=True, kw_only=True)
class Args:
    """Talking videos to shards. No arguments: the demo corpus's own clips, read back from their pictures."""

    videos: str = "demo/corpus/clips"
    """A folder, or a glob pattern in quotes."""
    output: str = "demo/from_videos"
    """Folder or URI of stage 2's shards."""
    crops: int = 0
    """Side in pixels of the face crops for stage 1's video shards; 0 makes none."""
    crops_output: str | None = None
    """Folder or URI of the video shards; videos/ beside the output if not given."""
    landmarks: Path | None = None
    """Another MediaPipe .task file than the packaged one."""
    held_out: float = 0.2
    """Held-out videos: a number, or below 1 a part of them."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model; log-mel features without it."""
    seed: int = 0
    """Of which videos are held out."""
    workers: int | None = None
    """Processes; one a core if not given."""


def main() -> int:
    args = tyro.cli(Args)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {args.videos} into {args.output}")
    try:
        corpus = shards_from_videos(**vars(args), progress=_say)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        print(f"shards_from_videos: {error}", file=sys.stderr)
        return 2
    good = [fate for fate in corpus.fates if fate.status == "ok"]
    minutes = sum(fate.frames for fate in good) / FPS / 60
    print(
        f"{len(good)} of {len(corpus.fates)} videos, {minutes:.1f} min; shards and report.jsonl in {corpus.shards}"
    )
    return 3 if corpus.failed else 0


def _say(fate: VideoFate) -> None:
    why = f": {fate.reason}" if fate.reason else ""
    print(f"{fate.status:6} {fate.split:5} {fate.frames:6d} frames  {fate.file}{why}")


if __name__ == "__main__":
    sys.exit(main())
