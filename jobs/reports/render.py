"""Define the options of `jobs/report.py render`."""

from dataclasses import dataclass, field
from pathlib import Path

from xactor.render import RenderConfig
from xactor_platform.data.index import LatentSource


@dataclass(frozen=True, kw_only=True)
class ReportRender:
    """Report what stage 1 has learned, on held-out clips.

    Stage 1 trains the renderer and the motion encoder. The report compares rendered frames with the true frames, and
    measures how well the person and the expression can be read from the motion latents. The defaults report on the
    demo's model.

    Example: python jobs/report.py render --model runs/stage1/export --videos s3://bucket/videos --output report
    """

    model: str = "demo/runs/stage1/export"
    """Folder of stage 1's export."""
    videos: str = "demo/corpus/videos"
    """Folder or URI of video shards. Only clips of the held-out shards are used."""
    output: Path = Path("demo/report/render")
    """Folder for report.json and faces.png."""
    latents: LatentSource = "encoder"
    """Source of the motion latents: `encoder` is the motion encoder, applied to the true frames; `controls` means the
    clips' control tracks (blendshapes and head pose for each frame)."""
    windows: int = 2
    """Number of windows of each clip that are rendered, at least 1. The frames of a window are denoised together."""
    max_clips: int = 8
    """Maximum number of held-out clips. The longest clips are used."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """Options with which the frames are rendered."""
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
