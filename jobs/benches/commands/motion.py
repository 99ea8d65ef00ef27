"""Define the options of `jobs/bench.py motion`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benches.results import BENCHMARKS, save_results

Size = Literal["3M", "15M", "90M", "0.5B", "7B"]


@dataclass(frozen=True, kw_only=True)
class BenchMotion:
    """Measure the motion engine: its cache, its batching, its speed and an hour-long run.

    The engine generates motion from audio, chunk by chunk. Its cache holds the keys and values of the frames before a
    chunk. Batching puts several streams, each the motion of one recording, into one forward pass. The weights are
    random, which does not change the speed. Models are float32 on a CPU and bfloat16 on a GPU.

    Example: python jobs/bench.py motion --sizes 3M 15M --steps 10 20 50 --minutes 60
    """

    sizes: tuple[Size, ...] = ()
    """Sizes of the models for the measurement of speed. By default 3M 15M 90M on a CPU and 15M 0.5B 7B on a GPU."""
    steps: tuple[int, ...] = (10, 20, 50)
    """Numbers of DDIM steps per chunk for the measurement of speed, each within 1..1000."""
    cache_size: Size | None = None
    """Size of the model for the measurement of the cache. By default 90M on a CPU and 7B on a GPU."""
    batching_size: Size | None = None
    """Size of the model for the measurement of batching. By default 15M on a CPU and 7B on a GPU."""
    streams: int = 8
    """Number of streams that are batched, at least 1."""
    minutes: int = 60
    """Length of the long run, in minutes of motion, at least 2. The last minute is compared with the second one."""
    rounds: int = 3
    """Number of rounds of each measurement. The figures are medians."""
    output: Path = BENCHMARKS / "motion.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        import torch

        from benches.motion import compare_batching, compare_cache, measure_length

        gpu = torch.cuda.is_available()
        cache_size = self.cache_size or ("7B" if gpu else "90M")
        cache = compare_cache(cache_size, steps=50, rounds=self.rounds)
        print_cache(cache)
        batching = compare_batching(
            self.batching_size or ("7B" if gpu else "15M"),
            streams=self.streams,
            chunks=4,
            steps=20,
            rounds=self.rounds,
            max_batch=self.streams,
        )
        print_batching(batching)
        rates = self._rates(self.sizes or (("15M", "0.5B", "7B") if gpu else ("3M", "15M", "90M")))
        length = measure_length("3M", minutes=self.minutes, steps=2)
        print(
            f"run of {length['minutes']} minutes: compared with minute 2, a chunk of the last minute takes "
            f"{length['late_over_early_s']:.3f} of the time and {length['late_over_early_mb']:.3f} of the memory"
        )
        save_results(self.output, {"cache": cache, "batching": batching, "rates": rates, "length": length})
        return 0

    def _rates(self, sizes: tuple[Size, ...]) -> list[dict[str, Any]]:
        """Measure the speed of every size with each number of steps.

        Each number of steps except the highest is also measured with pipelined denoising: a chunk's frames form four
        groups, and the groups start to be denoised one after another.

        Returns:
            The rows of `measure_rate`.
        """
        from benches.motion import measure_rate
        from xactor.motion import SamplingConfig

        configs = [SamplingConfig(steps=steps) for steps in self.steps]
        configs += [SamplingConfig(steps=steps, groups=4) for steps in self.steps if steps < max(self.steps)]
        rates = []
        for size in sizes:
            for config in configs:
                rates.append(row := measure_rate(size, config=config, rounds=self.rounds))
                print(
                    f"{row['size']:>5} {row['steps']:>3} steps, {row['groups']} groups: {row['frames_per_s']:>8.1f} "
                    f"frames/s, real-time factor {row['real_time_factor']:.3f}, "
                    f"first frames after {row['first_frames_s']:.3f} s",
                    flush=True,
                )
        return rates


def print_cache(row: dict[str, Any]) -> None:
    print(
        f"cache ({row['size']}): a chunk after {row['context_frames'] - row['chunk_frames']} frames takes "
        f"{row['cached_s']:.2f} s with the cache and {row['uncached_s']:.2f} s without, "
        f"{row['uncached_over_cached']:.1f} times as long",
        flush=True,
    )


def print_batching(batching: dict[str, Any]) -> None:
    print(
        f"{batching['streams']} streams ({batching['size']}): frames/s, and seconds to the first chunk (p50, p95)"
    )
    for way in ("engine", "one_after_another", "whole_batches"):
        row = batching[way]
        firsts = f"{row['first_chunk_p50_s']:>9.2f}{row['first_chunk_p95_s']:>9.2f}"
        print(f"  {way:<18}{row['frames_per_s']:>8.0f}{firsts}")
    print(
        f"  throughput of the engine over the better of the others: {batching['throughput_over_the_better']:.3f}",
        flush=True,
    )
