"""Define the options of `jobs/report.py render`."""

from dataclasses import dataclass, field
from pathlib import Path

from xactor.render import RenderConfig
from xactor_platform.data.index import LatentSource


@dataclass(frozen=True, kw_only=True)
class ReportRender:
    """Report what stage 1 has learned, on held-out clips.

    The report compares rendered frames with the true ones, and measures what the motion latents encode. The defaults
    report on the demo's model.

    Example: python jobs/report.py render --model runs/stage1/export --videos s3://bucket/videos --output report
    """

    model: str = "demo/runs/stage1/export"
    """Folder of stage 1's export."""
    videos: str = "demo/corpus/videos"
    """Folder or URI of video shards. The held-out shards are used."""
    output: Path = Path("demo/report/render")
    """Folder for report.json and faces.png."""
    latents: LatentSource = "encoder"
    """Source of the latents: the motion encoder, applied to the true frames, or the clips' control tracks."""
    windows: int = 2
    """Number of windows of each clip that are rendered, at least 1."""
    max_clips: int = 8
    """Maximum number of held-out clips. The longest clips are used."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """Options of the rendering."""
    seed: int = 0
    """Seed of the rendering."""

    def execute(self) -> int:
        from xactor_platform.evaluation.render_report import report_render

        report = report_render(
            self.model,
            self.videos,
            self.output,
            config=self.render,
            latents=self.latents,
            windows=self.windows,
            max_clips=self.max_clips,
            seed=self.seed,
        )
        print(report.table())
        print(f"written: {self.output}/report.json, faces.png")
        return 0
