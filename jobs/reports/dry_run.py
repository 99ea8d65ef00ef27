"""Define the options of `jobs/report.py dry-run`."""

import sys
from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class ReportDryRun:
    """Run a step of a training without memory or weights. Fail where it would fail or not fit its GPUs.

    The options of the training follow after `--`: those of jobs/train_stage1.py or jobs/train_stage2.py. The model, the
    micro-batch, forward and backward are the training's own, at full size, on tensors that have shapes and no memory.
    Folders of published weights need not exist; a config.json in them is used. The memory of DeepSpeed's ZeRO-2 is
    estimated by formulas, which tests compare with DeepSpeed. Exit status 1 if a phase does not fit the GPU.

    Example: python jobs/report.py dry-run stage2 --gpu A100 -- paper-7b --scale.ranks 16
    """

    stage: tyro.conf.Positional[Literal["stage1", "stage2"]]
    """The training."""
    options: tyro.conf.Positional[tuple[str, ...]] = ()
    """Options of the training, after `--`: the preset, then others. By default the preset of the paper. With
    --data.shards the clips are those of that corpus, otherwise they are as long as the paper's."""
    gpu: Literal["A100", "H100", "H200"] = "A100"
    """GPU of every rank; the A100 is the one with 80 GB."""

    def execute(self) -> int:
        from benches.data import paper_lengths
        from xactor_platform.data.index_file import load_index
        from xactor_platform.scale.dry_run import (
            assumed_index,
            dry_run,
            largest_tensors,
            memory_of_phases,
            misfit,
        )
        from xactor_platform.scale.machine import MACHINES
        from xactor_platform.training import stage1_config, stage2_config
        from xactor_platform.training.command import parse

        if self.stage == "stage1":
            config = parse(list(self.options) or ["paper"], stage1_config.PRESETS)
        else:
            config = parse(list(self.options) or ["paper-7b"], stage2_config.PRESETS)
        if any(option.startswith("--data.shards") for option in self.options):
            index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
        else:
            # So many clips make micro-batches as large as any.
            index = assumed_index(paper_lengths()[:20_000])
        steps, machine = dry_run(config, index), MACHINES[self.gpu]
        ranks, parameters = config.scale.ranks, steps[0].trained / 1e9
        batches = ", ".join(f"{s.samples} samples of up to {s.frames} frames" for s in steps[:1])
        title = (
            f"Memory of a rank, {self.stage} on {ranks} x {machine.name} of {machine.memory_bytes / 2**30:.1f} GiB, "
            f"{parameters:.2f} G trained parameters, a micro-batch of {batches}"
        )
        print(memory_of_phases(steps, title).text(), end="\n\n")
        print(largest_tensors(steps).text())
        misfits = [line for step in steps if (line := misfit(step, config, machine))]
        for line in misfits:
            print(f"error: {line}", file=sys.stderr)
        return 1 if misfits else 0
