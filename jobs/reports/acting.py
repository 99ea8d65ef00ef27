"""Define the options of `jobs/report.py acting`."""

from dataclasses import dataclass, field
from pathlib import Path

from xactor.model_folder import BOX
from xactor.options import AnimateOptions


@dataclass(frozen=True, kw_only=True)
class ReportActing:
    """Report how well generated lips follow held-out speech, compared with the true clips.

    The command animates the first frame of each clip by the clip's sound, and reads the lips of the generated video and
    of the true clip. It writes report.json and acting.png.

    Example: python jobs/report.py acting --clips demo/corpus/clips/test
    """

    model: str = BOX
    """Model folder. `box` is the model that comes with the package."""
    clips: Path = Path("demo/corpus/clips/test")
    """Folder of clips with control tracks (the true motion of each frame), as jobs/make_demo_corpus.py writes them."""
    output: Path = Path("demo/report/acting")
    """Folder for report.json and acting.png."""
    max_seconds: float = 20.0
    """Maximum length of each clip that is compared, in seconds. The rest of a longer clip is left out."""
    options: AnimateOptions = field(default_factory=AnimateOptions)
    """Options with which the videos are generated."""

    def execute(self) -> int:
        from xactor_platform.evaluation.acting_report import report_acting

        report = report_acting(
            self.model, self.clips, self.output, options=self.options, max_seconds=self.max_seconds
        )
        print(report.table())
        print(f"written: {self.output}/report.json, acting.png")
        return 0
