"""Define the options of `jobs/report.py motion`."""

from dataclasses import dataclass, field
from pathlib import Path

from xactor.motion import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class ReportMotion:
    """Report what a motion model has learned, on held-out clips.

    The command compares the lip opening in the generated motion with the true lip opening. It writes report.json,
    loss.png and lips.png. With --minutes it also writes drift.json and drift.png. With --few-steps it also writes
    few_steps.json. The defaults report on the demo's model.

    Example: python jobs/report.py motion --run runs/stage2 --shards /data/latents --few-steps --minutes 10
    """

    run: str = "demo/runs/stage2"
    """Local folder of stage 2's run."""
    shards: str = "demo/latents/shards"
    """Folder or URI of motion shards. Clips of the held-out shards are used. Their true lip opening must be known: from
    control tracks in the shards, or from latents that are made of control tracks."""
    output: Path = Path("demo/report/motion")
    """Folder for the report."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Options of the sampling, which generates the motion."""
    seed: int = 0
    """Seed of the sampling."""
    max_clips: int = 8
    """Maximum number of held-out clips. The longest clips are used."""
    minutes: float = 0
    """Length of a long generated motion, in minutes, that is tested for drift: for lips and statistics that change with
    time; 0 leaves this test out."""
    few_steps: bool = False
    """Also compare the default of 50 DDIM steps with fewer steps, and with pipelined denoising, in which groups of a
    chunk's frames start to be denoised one after another."""

    def execute(self) -> int:
        from xactor_platform.evaluation.drift import measure_drift
        from xactor_platform.evaluation.few_steps import compare_steps, table
        from xactor_platform.evaluation.motion_report import report_motion

        paths = (self.run, self.shards, self.output)
        report = report_motion(*paths, config=self.sampling, seed=self.seed, max_clips=self.max_clips)
        print(report.table())
        print(f"written: {self.output}/report.json, loss.png, lips.png")
        if self.minutes:
            drift = measure_drift(*paths, minutes=self.minutes, config=self.sampling, seed=self.seed)
            print(drift.table())
            print(f"written: {self.output}/drift.json, drift.png")
        if self.few_steps:
            rows = compare_steps(*paths, config=self.sampling, seed=self.seed, max_clips=self.max_clips)
            print(table(rows))
            print(f"written: {self.output}/few_steps.json")
        return 0
