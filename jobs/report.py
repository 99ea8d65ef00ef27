"""Report on a trained model, or plan a training.

    ray job submit --working-dir . -- python jobs/report.py motion \\
        --run /data/runs/stage2 --shards /data/latents --output /data/report

The command also runs without a cluster: `python jobs/report.py motion`. `python jobs/report.py NAME --help` describes a
report's options.
"""

import _checkout  # noqa: F401

from _subcommands import Subcommand, run_subcommand
from xactor.command_line import run_command

REPORTS = {
    "ablation": Subcommand(
        module="reports.ablation",
        name="ReportAblation",
        summary="Train every variant of the paper's Table 2, score them and write the table.",
    ),
    "acting": Subcommand(
        module="reports.acting",
        name="ReportActing",
        summary="Report how well generated lips follow held-out speech, compared with the true clips.",
    ),
    "dry-run": Subcommand(
        module="reports.dry_run",
        name="ReportDryRun",
        summary="Run a step of a training without memory or weights. Fail where it would fail or not fit its GPUs.",
    ),
    "motion": Subcommand(
        module="reports.motion",
        name="ReportMotion",
        summary="Report what a motion model has learned, on held-out clips.",
    ),
    "render": Subcommand(
        module="reports.render",
        name="ReportRender",
        summary="Report what stage 1 has learned, on held-out clips.",
    ),
    "scale": Subcommand(
        module="reports.scale",
        name="ReportScale",
        summary="Plan stage 2 on other machines: estimate memory, step time and data by formula and simulation.",
    ),
}

if __name__ == "__main__":
    run_command(lambda: run_subcommand(REPORTS, __doc__))
