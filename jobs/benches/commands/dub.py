"""Define the options of `jobs/bench.py dub`."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benches.results import BENCHMARKS, save_results
from xactor.model_folder import BOX, located


@dataclass(frozen=True, kw_only=True)
class BenchDub:
    """Compare the speed of bulk dubbing with a loop of `xactor animate` over the same rows.

    Each row describes one video to make. Bulk dubbing is measured with one render worker and with two.

    Example: python jobs/bench.py dub --rows 12
    """

    model: str = BOX
    """Model folder. `box` is the model that comes with the package."""
    clips: tuple[Path, ...] = (Path("demo/corpus/clips/test/test-0002.mp4"),)
    """Videos whose first frames are the portraits and whose sound is the speech. The rows use the videos in turn."""
    rows: int = 12
    """Number of videos to make, at least 3."""
    motion_steps: int = 10
    """DDIM steps of a chunk of motion, within 1..1000."""
    render_steps: int = 1
    """DDIM steps of a window of frames, within 0..1000. 0 shows the portrait as the guess network moves it, if the
    model has such a network."""
    output: Path = BENCHMARKS / "dub.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        from PIL import Image

        from benches.dub import bench_dub
        from xactor.media import read_frames

        options = {"motion_steps": self.motion_steps, "render_steps": self.render_steps, "render_cfg": 1.0}
        with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
            portraits = []
            for number, clip in enumerate(self.clips):
                portraits.append(str(Path(folder, f"{number}.png")))
                Image.fromarray(next(read_frames(clip))).save(portraits[-1])
            figures = bench_dub(
                model=str(Path(located(self.model)).absolute()),
                images=portraits,
                audios=[str(clip.absolute()) for clip in self.clips],
                rows=self.rows,
                folder=Path(folder, "bench"),
                options=options,
            )
        print(json.dumps(figures, indent=2))
        save_results(self.output, figures)
        return 0
