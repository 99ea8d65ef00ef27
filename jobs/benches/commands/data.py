"""Define the options of `jobs/bench.py data`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchData:
    """Measure the data path against plain webdataset, and the plan of the paper's corpus.

    The planned stream and a webdataset DataLoader read the same shards.

    Example: python jobs/bench.py data --size-gb 0.5 --workers 1 2
    """

    shards: str | None = None
    """Local folder of shards to read. By default synthetic ones in a temporary folder."""
    size_gb: float = 1.0
    """Size of the synthetic shards, in GB."""
    audio_layers: int = 3
    """Audio layers L of the synthetic shards."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of reading processes; each is one comparison."""
    rounds: int = 3
    """Rounds of each comparison; the figures are medians."""
    epochs: int = 3
    """Epochs of each round."""
    budget_frames: int = 4096
    """Most frames of a batch."""
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
                    f"{workers} reading: {row['frames_per_s']['planned_stream']:,.0f} frames/s, webdataset "
                    f"{row['frames_per_s']['webdataset']:,.0f}: ratio {row['ratio']:.2f}, "
                    f"{row['times_an_a100_rank']:.0f} times an A100 rank",
                    flush=True,
                )
        print(
            f"plan of {plan['clips']:,} clips: {plan['seconds']:.2f} s, {plan['peak_mb']:.0f} MB, "
            f"padding {plan['padding']:.2%}"
        )
        save_results(self.output, {"plan_of_the_papers_corpus": plan, "streams": streams})
        return 0
