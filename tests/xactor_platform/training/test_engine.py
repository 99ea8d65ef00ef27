"""Test that faster options of the engine train the same weights, and that batches are prepared ahead in order."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xactor.motion import ForcingBatch
from xactor_platform.data.batch import Batch
from xactor_platform.data.plan import Cursor
from xactor_platform.training.engine import deepspeed_config, place_steps
from xactor_platform.training.prefetch import Prefetch
from xactor_platform.training.train_config import TrainConfig

OPTIONS = Path(__file__).with_name("engine_options.py")


@pytest.mark.slow
def test_fused_adam_and_overlapped_reduction_train_the_same_weights(tmp_path):
    """A CPU has no streams, so this shows that the options are equal in arithmetic, not that a GPU has no races."""
    ranks = 2
    running = [
        subprocess.Popen(
            [sys.executable, str(OPTIONS), str(rank), str(ranks), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for text in printed:
        lines = [line.split() for line in text.splitlines()]
        figures = {words[0]: float(words[1]) for words in lines if words and words[0] in ("moved", "fused")}
        digests = {words[1]: words[2] for words in lines if words and words[0] == "digest"}
        assert len(digests) == 4, text[-2000:]
        assert digests["overlapped"] == digests["plain"]
        assert digests["resumed"] == digests["fused"]
        # Six steps of 0.01 move the weights by hundredths.
        assert figures["moved"] > 0.005
        assert figures["fused"] < 1e-6


def test_only_a_gpu_gets_the_fused_kernel():
    config = deepspeed_config(TrainConfig(), ranks=1, bf16=True)
    assert config["optimizer"]["params"]["fused"] is False
    assert (
        deepspeed_config(TrainConfig(), ranks=1, bf16=True, fused=True)["optimizer"]["params"]["fused"]
        is True
    )


def test_numbers_of_steps_are_placed_where_the_weights_are():
    weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    state = {weight: {"step": torch.tensor(5), "exp_avg": torch.zeros(3)}}
    place_steps(SimpleNamespace(optimizer=SimpleNamespace(optimizer=SimpleNamespace(state=state))))
    assert state[weight]["step"].device.type == "meta"
    assert state[weight]["step"].dtype == torch.float32


# --- preparing ahead ----------------------------------------------------------------------------------------------


def batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        yield Batch(
            keys=[f"clip-{number}"],
            starts=np.zeros(1, np.int64),
            frames=np.ones(1, np.int64),
            weight=np.ones(1, np.float32),
            cursor=Cursor(epoch=number // 2),
        )


class Stage:
    """Record which batches are prepared, and in which thread."""

    def __init__(self):
        self.prepared: list[str] = []
        self.threads: set[str] = set()

    def inputs(self, batch: Batch, random_key: tuple[int | str, ...]) -> Any:
        if batch.keys == ["clip-3"]:
            raise ValueError("clip-3 is broken")
        self.prepared += batch.keys
        self.threads.add(threading.current_thread().name)
        return batch.keys, random_key


def prefetch(source: Iterator[Batch], stage: Any) -> Prefetch:
    return Prefetch(source, stage, seed=7, device=torch.device("cpu"))


def test_batches_are_prepared_ahead_in_their_order_with_their_own_keys():
    stage = Stage()
    with prefetch(batches(3), stage) as prepared:
        found = list(prepared)
    assert [inputs for _, inputs in found] == [([f"clip-{n}"], (7, n // 2)) for n in range(3)]
    assert [batch.keys for batch, _ in found] == [inputs[0] for _, inputs in found]
    assert all(name.startswith("prefetch") for name in stage.threads)


def test_one_batch_is_prepared_while_another_is_trained_on():
    stage, source = Stage(), batches(3)
    with prefetch(source, stage) as prepared:
        next(prepared)
        prepared._next.result(timeout=10)
        assert stage.prepared == ["clip-0", "clip-1"]
    # The source is free again, so that it can be closed.
    source.close()


def test_an_error_of_the_thread_is_raised_in_its_turn():
    with prefetch(batches(5), Stage()) as prepared:
        for _ in range(3):
            next(prepared)
        with pytest.raises(ValueError, match="clip-3 is broken"):
            next(prepared)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_to_a_gpu_is_whole():
    tensors = [torch.randn(64, 512, 512) for _ in range(4)]

    class Copying(Stage):
        def inputs(self, batch: Batch, random_key: tuple[int | str, ...]) -> Any:
            z = tensors[int(batch.keys[0][-1])]
            rows = torch.ones(len(z))
            return ForcingBatch(z, z, rows, rows, z, rows, rows).to("cuda")

    with Prefetch(batches(3), Copying(), seed=0, device=torch.device("cuda")) as prepared:  # pyright: ignore
        for number, (_, inputs) in enumerate(prepared):
            assert torch.equal(inputs.z.cpu(), tensors[number])
