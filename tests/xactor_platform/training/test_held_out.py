"""Test that bad held-out samples are reported by an evaluation, which leaves them out of its loss."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from xactor_platform.data.batch import read_batch
from xactor_platform.data.index import BadSample
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import PlanConfig
from xactor_platform.training.held_out import HeldOut
from xactor_platform.training.run.recorder import Recorder


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_bad_held_out_samples_are_reported(corpus, one_rank):
    index = load_index(corpus([9, 12, 7], split="test")).held_out()
    shard = Path(index.location.path, "test-000000.tar")
    stamp = shard.stat().st_mtime_ns
    with shard.open("r+b") as file:
        file.seek(int(index.offset["audio.npy"][1] + index.header["audio.npy"][1]))
        file.write(b"\0\1")
    os.utime(shard, ns=(stamp, stamp))
    plan = PlanConfig(micro_batches=1, budget_frames=32, context_frames=16, shuffle_shards=1)
    held_out = HeldOut(index, plan, 1000, rank=0, ranks=1)

    def loss(micro_batch):
        batch = read_batch(index, micro_batch)
        return torch.tensor(2.0 * batch.mask.sum()), int(batch.mask.sum()), batch.bad

    evaluation = held_out.evaluate(loss, torch.device("cpu"))
    assert evaluation.figures == {"held_out_loss": 2.0}
    assert evaluation.samples == 3
    assert [str(bad) for bad in evaluation.bad] == [
        "test-000000.tar: test-0001: audio.npy differs from its checksum"
    ]


def test_a_bad_held_out_sample_is_recorded_once():
    written: list[Any] = []
    recorder: Any = SimpleNamespace(_bad_held_out=set(), bad_samples=written.extend)
    first, second = BadSample("a", "test-0.tar", "cut"), BadSample("b", "test-0.tar", "cut")
    for bad in ([first], [], [first, second], [second]):
        Recorder.bad_held_out_samples(recorder, bad)
    assert written == [first, second]
