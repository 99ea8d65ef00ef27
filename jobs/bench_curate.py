"""Measures curation: each stage, decoding beside PyAV alone, and two actors beside one, precomputation's too.

    python jobs/bench_curate.py --videos /data/talking --syncnet weights/syncnet_v2.model

Every process computes on one thread. Writes the figures to --output as JSON, and prints them.
"""

import _checkout

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """No arguments: the demo corpus, without SyncNet."""

    videos: str = "demo/corpus/clips"
    """Folder of videos."""
    shards: str = "demo/corpus/videos"
    """Folder of video shards, of which the shortest clip is encoded."""
    syncnet: str = "none"
    """A SyncNet's folder or file."""
    size_px: int = 512
    pieces: int = 12
    """Of video, that the actors work on; and shards that they encode."""
    rounds: int = 3
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/curate.json"


def main() -> int:
    args = tyro.cli(Args, description=__doc__)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # After the threads are bounded.
    import cv2
    import torch

    from benches.curate import bench_decoding, bench_encoding, bench_stages, bench_tracking
    from xactor_platform.curation.files import list_videos
    from xactor_platform.cluster.environment import environment
    from xactor_platform.cluster.connect import connect

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="xactor-bench-") as scratch:
            report = {
                "command": " ".join(["python", "jobs/bench_curate.py", *sys.argv[1:]]),
                "environment": environment(),
            }
            stages, pieces = bench_stages(args.videos, Path(scratch), args.syncnet, args.size_px)
            report["stages"] = stages
            for row in stages:
                print(
                    f"{row['stage']:6} {row['hours_per_core_hour']:8.1f} hours of video a core-hour",
                    flush=True,
                )
            first = Path(list_videos(args.videos)[0][0].uri)
            report["decoding"] = found = bench_decoding(first, args.rounds)
            print(
                f"decoding: {found['ratio']:.2f} of PyAV alone, {found['read_span']:.0f} frames/s", flush=True
            )
            connect(_checkout.PY_MODULES)
            report["tracking"] = found = bench_tracking(pieces, Path(scratch), args.pieces, args.rounds)
            print(f"two actors that track: {found['ratio']:.2f} times one", flush=True)
            report["encoding"] = found = bench_encoding(args.shards, Path(scratch), args.pieces, args.rounds)
            print(
                f"two actors that encode: {found['ratio']:.2f} times one; "
                f"they have no pictures {found['waits']:.1%} of the time"
            )
    except ValueError as error:
        print(f"bench_curate: {error}", file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
