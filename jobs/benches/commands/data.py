"""Define the options of `jobs/bench.py data`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchData:
    """Compare our data stream with plain webdataset, and time the plan of the paper's corpus.

    Our stream and a webdataset DataLoader read the same shards. A plan is the order of the samples in an epoch.

    Example: python jobs/bench.py data --size-gb 0.5 --workers 1 2
    """

    shards: str | None = None
    """Local folder of shards to read. By default synthetic shards are written to a temporary folder."""
    size_gb: float = 1.0
    """Size of the synthetic shards, in GB."""
    audio_layers: int = 3
    """Number of layers L of the audio features in the synthetic shards."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of reading processes. Our stream and webdataset are compared once for each number."""
    rounds: int = 3
    """Number of rounds of each comparison. The figures are medians."""
    epochs: int = 3
    """Number of epochs in each round."""
    budget_frames: int = 4096
    """Maximum number of frames in a batch."""
    output: Path = BENCHMARKS / "data.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        from benches.data import compare, measure_plan, write_synthetic
        from xactor_platform.data.plan import PlanConfig

        config, streams = PlanConfig(budget_frames=self.budget_frames), []
        plan = measure_plan(config)
        with tempfile.TemporaryDirectory() as folder:
            if not self.shards:
                write_synthetic(folder, int(self.size_gb * 1e9), self.audio_layers, config.context_frames)
            for workers in self.workers:
                row = compare(
                    self.shards or folder,
                    workers=workers,
                    rounds=self.rounds,
                    epochs=self.epochs,
                    config=config,
                )
                streams.append(row)
                print(
                    f"reading processes: {workers}; our stream {row['frames_per_s']['planned_stream']:,.0f} frames/s, "
                    f"webdataset {row['frames_per_s']['webdataset']:,.0f} frames/s, ratio {row['ratio']:.2f}; "
                    f"our stream reads {row['times_an_a100_rank']:.0f} times what one A100 consumes in training",
                    flush=True,
                )
        print(
            f"planning an epoch of {plan['clips']:,} clips takes {plan['seconds']:.2f} s and {plan['peak_mb']:.0f} MB; "
            f"{plan['padding']:.2%} of the frames are padding"
        )
        save_results(self.output, {"plan_of_the_papers_corpus": plan, "streams": streams})
        return 0
