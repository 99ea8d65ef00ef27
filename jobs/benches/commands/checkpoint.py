"""Define the options of `jobs/bench.py checkpoint`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchCheckpoint:
    """Measure how long a training step waits for a checkpoint.

    Saving in the background is compared with saving while the training waits, and with DeepSpeed's own save followed by
    a copy to the storage.

    Example: python jobs/bench.py checkpoint --width 1024 --rounds 2
    """

    width: int = 2048
    """Width of the linear layers, at least 1. A checkpoint has about 16 bytes for each parameter."""
    layers: int = 17
    """Number of linear layers, at least 1. The defaults make a state of 1.1 GB."""
    rounds: int = 4
    """Number of rounds. Each round saves once in each of the three ways. An extra round warms up."""
    steps: int = 3
    """Number of training steps that each round times without a save in progress, and then again during a save."""
    storage: str | None = None
    """Folder or URI for the checkpoints. By default a temporary folder."""
    output: Path = BENCHMARKS / "checkpoint.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        from benches.checkpoint import measure

        with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
            figures = measure(
                self.storage or folder,
                width=self.width,
                layers=self.layers,
                rounds=self.rounds,
                steps=self.steps,
            )
        print(
            f"{figures['state_bytes'] / 1e9:.2f} GB: a step waits {figures['blocked_s']:.2f} s for a save, which is "
            f"{figures['blocked_share']:.1%} of a synchronous save ({figures['synchronous_s']:.2f} s) "
            f"and {figures['blocked_share_of_plain']:.1%} of DeepSpeed's save and a copy ({figures['plain_s']:.2f} s); "
            f"at the first save it waits {figures['first_blocked_s']:.2f} s\n"
            f"a step takes {figures['step_s']:.2f} s, and {figures['step_beside_s']:.2f} s during a save"
        )
        save_results(self.output, figures)
        return 0
