"""Define the options of `jobs/bench.py curate`."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from _checkout import PY_MODULES
from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchCurate:
    """Measure each stage of curation, and how curation and precomputation scale to two actors.

    Compare decoding with PyAV alone, and two actors with one. Every process computes on one thread. The defaults use
    the demo corpus, without SyncNet.

    Example: python jobs/bench.py curate --videos /data/talking --syncnet weights/syncnet_v2.model
    """

    videos: str = "demo/corpus/clips"
    """Folder of videos."""
    shards: str = "demo/corpus/videos"
    """Folder of video shards. Its shortest clip is encoded."""
    syncnet: str = "none"
    """Folder or file of a SyncNet; `none` leaves its stage out."""
    size_px: int = 512
    """Side of the face crops, in pixels."""
    pieces: int = 12
    """Pieces of video that the actors track, and shards that they encode; at least 4."""
    rounds: int = 3
    """Rounds of each comparison; the figures are medians."""
    output: Path = BENCHMARKS / "curate.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        # Set before numpy, OpenCV and torch are imported.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        import cv2
        import torch

        from benches.curate import bench_decoding, bench_encoding, bench_stages, bench_tracking
        from xactor_platform.curation.video_files import list_videos
        from xactor_platform.cluster.connect import connect

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
            scratch = Path(folder)
            stages, pieces = bench_stages(self.videos, scratch, self.syncnet, self.size_px)
            for row in stages:
                rate = f"{row['hours_per_core_hour']:8.1f} hours of video a core-hour"
                print(f"{row['stage']:6} {rate}", flush=True)
            first = Path(list_videos(self.videos)[0][0].uri)
            decoding = bench_decoding(first, self.rounds)
            print(
                f"decoding: {decoding['ratio']:.2f} of PyAV alone, {decoding['read_span']:.0f} frames/s",
                flush=True,
            )
            connect(PY_MODULES)
            tracking = bench_tracking(pieces, scratch, self.pieces, self.rounds)
            print(f"two actors that track: {tracking['ratio']:.2f} times one", flush=True)
            encoding = bench_encoding(self.shards, scratch, self.pieces, self.rounds)
            print(
                f"two actors that encode: {encoding['ratio']:.2f} times one; "
                f"they wait for pictures {encoding['waits']:.1%} of the time"
            )
        figures = {"stages": stages, "decoding": decoding, "tracking": tracking, "encoding": encoding}
        save_results(self.output, figures)
        return 0
