"""Define the options of `jobs/bench.py train`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from _checkout import PY_MODULES
from benches.results import BENCHMARKS, save_results


@dataclass(frozen=True, kw_only=True)
class BenchTrain:
    """Measure a training step of stage 2, and compare FlexAttention with SDPA.

    The training loop's step is compared with a step of the same DeepSpeed engine on batches that are already on the
    device.

    Example: python jobs/bench.py train --preset tiny --hidden 512 --rounds 4
    """

    preset: Literal["tiny", "small", "paper-7b"] = "tiny"
    """Preset whose model and batch size are used. The weights are random, which does not change the speed."""
    hidden: int | None = None
    """Width of the model, a multiple of 64. The heads and the MLP scale with it. By default the preset's width."""
    rounds: int = 12
    """Number of steps that are timed, after one step that warms up."""
    output: Path = BENCHMARKS / "train.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        import ray

        from benches.train import compare_attention, compare_loop
        from xactor_platform.training.train_config import ScaleConfig
        from xactor_platform.cluster.connect import connect
        from xactor_platform.training.stage2_config import PRESETS, Stage2Config

        connect(PY_MODULES)
        use_gpu = ray.cluster_resources().get("GPU", 0) > 0
        config: Stage2Config = PRESETS[self.preset]()
        model = dataclasses.replace(config.model, backbone=None)
        if self.hidden:
            heads, mlp = self.hidden // 64, 4 * self.hidden
            model = dataclasses.replace(model, hidden=self.hidden, heads=heads, kv_heads=1, mlp=mlp)
        scale = config.scale if use_gpu else ScaleConfig(ranks=1, cpus_per_rank=1, threads=1)
        config = dataclasses.replace(config, model=model, scale=dataclasses.replace(scale, ranks=1))
        loop = compare_loop(config, rounds=self.rounds, use_gpu=use_gpu)
        attention = compare_attention(config, rounds=self.rounds)
        mfu = "" if loop["mfu"] is None else f", MFU {loop['mfu']:.1%}"
        print(
            f"{loop['parameters'] / 1e6:.1f} M parameters, {loop['frames_per_s']:,.0f} frames/s{mfu}\n"
            f"a step of the loop takes {loop['ratio']:.3f} times as long as one on resident batches; "
            f"it waits for data {loop['data_wait_share']:.1%} of the time\n"
            f"FlexAttention takes {attention['flex_over_sdpa']:.2f} of SDPA's time on {attention['device']}"
            f"{'' if attention['backward'] else ' (forward only: FlexAttention has no backward pass on a CPU)'}"
        )
        save_results(self.output, {"loop": loop, "attention": attention})
        return 0
