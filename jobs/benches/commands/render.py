"""Define the options of `jobs/bench.py render`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchRender:
    """Compare the renderer's frames per second and peak memory with AnimateDiff's.

    Each combination of window, steps and picture size is measured with AnimateDiff and with our renderer. Our renderer
    is measured twice: with a cached reference, and computing the reference for every window. The reference is the
    features of the portrait that the renderer copies from. The weights are random, which does not change the speed.

    Example: python jobs/bench.py render --image-sizes 64 128 --steps 4 25
    """

    size: Literal["tiny", "sd15"] | None = None
    """Size of the networks. By default `tiny` on a CPU, and `sd15` (the size of SD1.5) on a GPU."""
    image_sizes: tuple[int, ...] = ()
    """Sides of the pictures, in pixels. By default 64 on a CPU and 512 on a GPU."""
    windows: tuple[int, ...] = (8, 16)
    """Numbers of frames in a window."""
    steps: tuple[int, ...] = (4, 25)
    """Numbers of DDIM steps per window, each within 1..1000."""
    rounds: int = 3
    """Number of rounds of each measurement. The figures are medians."""
    model: Path | None = None
    """Folder of a pipeline. If `model` and `image` are given, whole videos are measured too: memory, speed, and the
    change between frames at the seams of windows."""
    image: Path | None = None
    """Picture of the portrait in the whole videos."""
    seconds: tuple[float, ...] = (20, 120)
    """Lengths of the whole videos, in seconds. They are made with 4 DDIM steps per chunk and per window."""
    output: Path = BENCHMARKS / "render.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        import torch

        from benches.render import Case, measure

        gpu = torch.cuda.is_available()
        size = self.size or ("sd15" if gpu else "tiny")
        cases = [
            Case(size=size, image_size=side, window_frames=window, steps=steps, kind=kind, rounds=self.rounds)
            for side in self.image_sizes or ((512,) if gpu else (64,))
            for window in self.windows
            for steps in self.steps
            for kind in ("cached", "uncached", "animatediff")
        ]
        device = torch.cuda.get_device_name() if gpu else "cpu"
        print(f"{size} on {device}\n  px  window  steps  reference    frames/s  peak MB")
        rows = []
        for row in measure(cases):
            rows.append(row)
            print(
                f"{row['image_size']:>4}  {row['window_frames']:>6}  {row['steps']:>5}  {row['kind']:<11}"
                f"  {row['frames_per_s']:>8.2f}  {row['peak_mb']:>7.0f}",
                flush=True,
            )
        save_results(self.output, {"rows": rows, "lengths": self._lengths()})
        return 0

    def _lengths(self) -> list[dict[str, Any]]:
        """Measure whole videos and return one row for each length, or no rows if the model or the image is missing."""
        from benches.render import measure_lengths

        if not (self.model and self.image):
            return []
        rows = []
        for row in measure_lengths(str(self.model), str(self.image), self.seconds, steps=4):
            rows.append(row)
            print(
                f"{row['seconds']:g} s: {row['peak_mb']:.0f} MB, {row['frames_per_s']:.1f} frames/s, "
                f"change from frame to frame: {row['at_seams']:.2f} grey levels at the seams of windows, "
                f"{row['elsewhere']:.2f} elsewhere",
                flush=True,
            )
        return rows
