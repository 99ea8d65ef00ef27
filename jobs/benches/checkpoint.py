"""Measure how long a training step waits for a checkpoint."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.train_config import TrainConfig
from xactor_platform.training.engine import make_engine
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.saver import Saver


def measure(storage: str, *, width: int, layers: int, rounds: int, steps: int) -> dict[str, Any]:
    """Measure saving on one rank with one thread, and return medians over the rounds.

    `blocked_s` is the time for which a save in the background blocks the training. `synchronous_s` is the time until
    such a save is complete, with its checksums. `plain_s` is the time of a save without our code: DeepSpeed writes into
    a local folder, and the folder is copied to the storage. `step_s` is the time of a training step while no save is in
    progress, and `step_beside_s` the time of a step during a save in the background. `first_blocked_s` is no median: it
    is the time for which the very first save blocks the training.

    Args:
        storage: Folder or URI for the checkpoints.
        width: Width of the linear layers. A checkpoint has about 16 bytes for each parameter: the weight, DeepSpeed's
            copy and two moments of Adam.
        layers: Number of linear layers.
        rounds: Number of rounds. Each round saves in all three ways. One more round warms up and is not counted.
        steps: Number of training steps that are timed without a save in progress, and again during a save.
    """
    if not torch.cuda.is_available():
        # Must be set before deepspeed is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="xactor-bench-") as rendezvous:
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}/ranks", rank=0, world_size=1)
        try:
            return _measure(storage, width, layers, rounds, steps)
        finally:
            dist.destroy_process_group()


def _measure(storage: str, width: int, layers: int, rounds: int, steps: int) -> dict[str, Any]:
    """Measure as `measure` does, once the process group exists."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    engine = make_engine(model, TrainConfig(), [list(model.parameters())], ranks=1, bf16=False)
    x = torch.randn(8, width, device=engine.device)

    def step() -> float:
        """Do one training step and return the seconds that it took."""
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
    blocked_s, synchronous_s, plain_s, step_s, step_during_save_s, state_bytes = [], [], [], [], [], 0
    with saver:
        for number in range(rounds + 1):
            step_s.append(median(step() for _ in range(steps)))
            # Save in the background.
            begun = time.perf_counter()
            saver.save(engine, 2 * number + 1, {}, None)
            blocked_s.append(time.perf_counter() - begun)
            step_during_save_s.append(median(step() for _ in range(steps)))
            saver.wait()
            # Save and wait for the end.
            begun = time.perf_counter()
            saver.save(engine, 2 * number + 2, {}, None)
            saver.wait()
            synchronous_s.append(time.perf_counter() - begun)
            # Save by DeepSpeed alone.
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="xactor-bench-") as folder:
                engine.save_checkpoint(folder, tag="state")
                run.upload_folder(folder, "plain")
                plain_s.append(time.perf_counter() - begun)
                state_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "state_bytes": state_bytes,
        "first_blocked_s": blocked_s[0],
        "blocked_s": median(blocked_s[1:]),
        "synchronous_s": median(synchronous_s[1:]),
        "plain_s": median(plain_s[1:]),
        "blocked_share": median(a / b for a, b in zip(blocked_s[1:], synchronous_s[1:], strict=True)),
        "blocked_share_of_plain": median(a / b for a, b in zip(blocked_s[1:], plain_s[1:], strict=True)),
        "step_s": median(step_s[1:]),
        "step_beside_s": median(step_during_save_s[1:]),
    }
