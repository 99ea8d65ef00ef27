"""Measure one part of the system and write the figures to infra/benchmarks/NAME.json.

    python jobs/bench.py render --steps 4 25

`python jobs/bench.py NAME --help` describes the options of the benchmark NAME. The benchmarks start the processes that
they need on this machine. If RAY_ADDRESS is set, `curate`, `dub` and `train` join that Ray cluster instead.
"""

import _checkout  # noqa: F401

from _subcommands import Subcommand, run_subcommand
from xactor.command_line import run_command

BENCHES = {
    "checkpoint": Subcommand(
        module="benches.commands.checkpoint",
        name="BenchCheckpoint",
        summary="Measure how long a training step waits for a checkpoint.",
    ),
    "crashes": Subcommand(
        module="benches.commands.crashes",
        name="BenchCrashes",
        summary="Kill trainings at random moments and compare their results with an undisturbed training.",
    ),
    "curate": Subcommand(
        module="benches.commands.curate",
        name="BenchCurate",
        summary="Measure each stage of curation, and how curation and precomputation scale to two actors.",
    ),
    "data": Subcommand(
        module="benches.commands.data",
        name="BenchData",
        summary="Compare our data stream with plain webdataset, and time the plan of the paper's corpus.",
    ),
    "dub": Subcommand(
        module="benches.commands.dub",
        name="BenchDub",
        summary="Compare the speed of bulk dubbing with a loop of `xactor animate` over the same rows.",
    ),
    "motion": Subcommand(
        module="benches.commands.motion",
        name="BenchMotion",
        summary="Measure the motion engine: its cache, its batching, its speed and an hour-long run.",
    ),
    "render": Subcommand(
        module="benches.commands.render",
        name="BenchRender",
        summary="Compare the renderer's frames per second and peak memory with AnimateDiff's.",
    ),
    "serve": Subcommand(
        module="benches.commands.serve",
        name="BenchServe",
        summary="Measure the service: time to the first fragment, throughput under rising load, and memory.",
    ),
    "train": Subcommand(
        module="benches.commands.train",
        name="BenchTrain",
        summary="Measure a training step of stage 2, and compare FlexAttention with SDPA.",
    ),
}

if __name__ == "__main__":
    run_command(lambda: run_subcommand(BENCHES, __doc__))
