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

    The speed of decoding is compared with a plain loop over PyAV's decoder, and the throughput of two actors with that
    of one actor. Every process computes on one thread. The defaults use the demo corpus, without SyncNet.

    Example: python jobs/bench.py curate --videos /data/talking --syncnet weights/syncnet_v2.model
    """

    videos: str = "demo/corpus/clips"
    """Folder of videos to curate."""
    shards: str = "demo/corpus/videos"
    """Folder of video shards for precomputation. Only their shortest clip is encoded, repeatedly."""
    syncnet: str = "none"
    """Folder or file of a SyncNet; `none` leaves out the stage that measures lip sync."""
    size_px: int = 512
    """Side of the face crops, in pixels."""
    pieces: int = 12
    """Number of pieces of video in which the actors of curation track faces, and number of shards that the actors of
    precomputation encode; at least 4."""
    rounds: int = 3
    """Number of rounds of each comparison. The figures are medians."""
    output: Path = BENCHMARKS / "curate.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        # NumPy, OpenCV and torch read these variables when they are imported, so set them before.
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
                rate = f"{row['hours_per_core_hour']:8.1f} hours of video per core-hour"
                print(f"{row['stage']:6} {rate}", flush=True)
            first_video = Path(list_videos(self.videos)[0][0].uri)
            decoding = bench_decoding(first_video, self.rounds)
            print(
                f"decoding: {decoding['ratio']:.2f} times PyAV's speed, {decoding['read_span']:.0f} frames/s",
                flush=True,
            )
            connect(PY_MODULES)
            tracking = bench_tracking(pieces, scratch, self.pieces, self.rounds)
            print(f"tracking: two actors are {tracking['ratio']:.2f} times as fast as one", flush=True)
            encoding = bench_encoding(self.shards, scratch, self.pieces, self.rounds)
            print(
                f"encoding: two actors are {encoding['ratio']:.2f} times as fast as one; "
                f"they wait for pictures {encoding['waits']:.1%} of the time"
            )
        figures = {"stages": stages, "decoding": decoding, "tracking": tracking, "encoding": encoding}
        save_results(self.output, figures)
        return 0
