"""How long a step waits for a checkpoint, beside one that it waits for to the end."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.config import TrainConfig
from xactor_platform.training.engine import make_engine
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.saver import Saver


@dataclass(frozen=True, kw_only=True)
class CheckpointBench:
    """
    width, layers: of a stack of linear layers; a parameter of fp32 has 16 bytes of state.
    rounds: of each kind of saving, in turn; the first of each is not counted.
    steps: of training while a checkpoint is written.
    """

    width: int = 2048
    layers: int = 17
    rounds: int = 4
    steps: int = 3


def measure(bench: CheckpointBench, storage: str) -> dict[str, Any]:
    """Seconds by kind, of one rank on one thread whose checkpoints go to `storage`. Medians over the rounds.

    `blocked_s` is what a step waits for; `synchronous_s` if it waited to the end, checksums and all; `plain_s` of what
    one would do without any of this: DeepSpeed saves into a local folder, which is copied to the storage.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed's import
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="xactor-bench-") as meeting:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{meeting}/ranks", rank=0, world_size=1)
        try:
            return _measure(bench, storage)
        finally:
            dist.destroy_process_group()


def _measure(bench: CheckpointBench, storage: str) -> dict[str, Any]:
    model = nn.Sequential(*(nn.Linear(bench.width, bench.width) for _ in range(bench.layers)))
    engine = make_engine(model, TrainConfig(), [list(model.parameters())], ranks=1, bf16=False)
    x = torch.randn(8, bench.width, device=engine.device)

    def step() -> float:
        begun = time.perf_counter()
        engine.backward(engine(x).square().mean(), scale_wrt_gas=False)
        engine.step()
        return time.perf_counter() - begun

    run = RunFolder(storage, "bench")
    saver = Saver(
        Checkpoints(run, keep=1),
        rank=0,
        ranks=1,
        token="bench",
        parameters=sum(p.numel() for p in model.parameters()),
        config={},
        timeout_s=600,
        before_commit=lambda: None,
        committed=lambda saved: None,
    )
    blocked, waited, plain, alone, beside, size = [], [], [], [], [], 0
    with saver:
        for number in range(bench.rounds + 1):
            alone.append(median(step() for _ in range(bench.steps)))
            begun = time.perf_counter()
            saver.save(engine, 2 * number + 1, {}, None)
            blocked.append(time.perf_counter() - begun)
            beside.append(median(step() for _ in range(bench.steps)))
            saver.wait()
            begun = time.perf_counter()
            saver.save(engine, 2 * number + 2, {}, None)
            saver.wait()
            waited.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
                engine.save_checkpoint(folder, tag="state")
                run.upload_folder(folder, "plain")
                plain.append(time.perf_counter() - begun)
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "state_bytes": size,
        "first_blocked_s": blocked[0],
        "blocked_s": median(blocked[1:]),
        "synchronous_s": median(waited[1:]),
        "plain_s": median(plain[1:]),
        "blocked_share": median(a / b for a, b in zip(blocked[1:], waited[1:], strict=True)),
        "blocked_share_of_plain": median(a / b for a, b in zip(blocked[1:], plain[1:], strict=True)),
        "step_s": median(alone[1:]),
        "step_beside_s": median(beside[1:]),
    }
