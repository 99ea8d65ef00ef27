"""Test dry runs: fake tensors need as much memory as real ones, and the paper's presets run and fit their GPUs."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from xactor.origin import AUDIO, LATENTS
from xactor_platform.data.batch import read_batch
from xactor_platform.scale.dry_run import (
    GIB,
    StepMemory,
    assumed_index,
    dry_run,
    largest_micro_batch,
    misfit,
)
from xactor_platform.scale.live_memory import LiveMemory, TensorKind, held_bytes, tensors_in
from xactor_platform.scale.machine import MACHINES
from xactor_platform.scale.memory import memory, sizes_of
from xactor_platform.training import stage1_config, stage2_config
from xactor_platform.training.stage2 import Stage2, build_objective
from xactor_platform.training.stage2_config import LatentDataConfig, MotionConfig, Stage2Config
from xactor_platform.training.train_config import TrainConfig

JOBS = Path(__file__).resolve().parents[3] / "jobs"
INDEX = assumed_index(np.full(64, 600))
QWEN: dict[str, Any] = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 192}


# --- live memory --------------------------------------------------------------------------------------------------


def test_memory_counts_once_until_it_is_freed():
    with LiveMemory() as live:
        x = torch.zeros(1000)
        view = x.view(10, 100)[0]
        assert live.bytes == 4000
        total = x + 1
        assert (live.bytes, live.peak_bytes) == (8000, 8000)
        del x, total
        # The view keeps its memory.
        assert live.bytes == 4000
        del view
    assert (live.bytes, live.peak_bytes) == (0, 8000)
    assert (TensorKind("aten.zeros.default", (1000,), "float32"), 1, 4000) in live.largest


def test_excluded_memory_does_not_count():
    weight = torch.zeros(1000)
    with LiveMemory() as live:
        live.exclude([weight])
        rows = weight.view(10, 100) * 1.0
        assert live.bytes == rows.nbytes
        assert weight.t().untyped_storage().nbytes() == live.bytes
    assert held_bytes([weight, weight[1:], rows]) == 8000


# --- stage 2 ------------------------------------------------------------------------------------------------------


def qwen_folder(folder: Path) -> str:
    """Save a small backbone, as it is published."""
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=QWEN["hidden"],
        num_hidden_layers=QWEN["layers"],
        num_attention_heads=QWEN["heads"],
        num_key_value_heads=QWEN["kv_heads"],
        intermediate_size=QWEN["mlp"],
    )
    Qwen2Model(config).save_pretrained(folder)
    return str(folder)


def small_stage2(backbone: str | None, **train: Any) -> Stage2Config:
    return Stage2Config(
        data=LatentDataConfig(),
        model=MotionConfig(backbone=backbone, audio_width=64, context_frames=64, **QWEN),
        train=TrainConfig(steps=1, micro_batches=2, budget_frames=512, precision="bf16", **train),
    )


def test_a_loaded_backbone_is_checkpointed(tmp_path):
    """A loaded backbone is in evaluation mode, in which transformers checkpoints nothing."""
    objective = build_objective(
        small_stage2(qwen_folder(tmp_path), gradient_checkpointing=True),
        INDEX.frame_shape,
        ([0.0] * 512, [1.0] * 512),
    )
    assert all(module.training for module in objective.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_need_the_memory_of_real_ones(tmp_path, checkpointing):
    """Load real weights and train on them; the dry run builds the same layout from config.json."""
    config = small_stage2(qwen_folder(tmp_path), gradient_checkpointing=checkpointing)
    (fake,) = dry_run(config, INDEX)
    facts = {"moments": ([0.0] * 512, [1.0] * 512), "audio_encoder": None, LATENTS: None, AUDIO: None}
    stage = Stage2(config, facts, INDEX, rank=0, ranks=2, device=torch.device("cpu"))
    stage.objective.bfloat16()
    for buffer in stage.objective.buffers():
        buffer.data = buffer.float()
    micro_batch = largest_micro_batch(config, INDEX)
    batch = read_batch(INDEX, micro_batch)
    live = LiveMemory()
    live.exclude([*stage.objective.parameters(), *stage.objective.buffers()])

    def forward(inputs):
        live.exclude(tensor for tensor in vars(inputs).values() if tensor is not None)
        with live:
            return stage.objective(inputs)

    loss = stage.loss(forward, stage.inputs(batch, (0, 0)), 0)
    kept = live.bytes
    with live:
        loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in stage.objective.parameters())
    assert fake.kept == pytest.approx(kept, rel=0.02)
    # The real gradients are not dropped: they stay until the end.
    gradients = held_bytes(tensors_in([p.grad for p in stage.objective.parameters()]))
    assert fake.activations == pytest.approx(live.peak_bytes, abs=gradients)
    assert fake.parameters == held_bytes([*stage.objective.parameters(), *stage.objective.buffers()])
    assert fake.trained == sum(p.numel() for p in stage.objective.parameters())
    assert (fake.samples, fake.frames) == (8, 64)


@pytest.mark.slow
def test_the_papers_stage_2_runs_and_fits_as_planned():
    config = stage2_config.paper_7b()
    (found,) = dry_run(config, INDEX)
    planned = memory(
        sizes_of(config.model, INDEX.frame_shape),
        ranks=16,
        stage=2,
        budget_frames=8192,
        context_frames=512,
        checkpointing=True,
    )
    assert found.samples * found.frames == 8192
    assert found.states == pytest.approx(planned.states, rel=0.01)
    assert found.activations + found.batch == pytest.approx(planned.activations, rel=0.1)
    assert found.total == pytest.approx(planned.total, rel=0.05)
    assert misfit(found, config, MACHINES["A100"]) is None


# --- stage 1 ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_papers_stage_1_runs_and_fits():
    config = stage1_config.paper()
    frames, temporal = dry_run(config, INDEX)
    assert (frames.phase, temporal.phase) == ("frames", "temporal")
    # UNet, reference network and temporal layers have most of the parameters. The VAE, 83.7 M, is not trained.
    assert 2.0e9 < frames.trained < 2.3e9
    assert frames.parameters == pytest.approx(2 * (frames.trained + 83_653_863), rel=0.001)
    # The averages are in fp32, complete on every rank.
    assert frames.averages == 4 * frames.trained
    assert frames.activations < temporal.activations < 20 * GIB
    for step in (frames, temporal):
        assert misfit(step, config, MACHINES["A100"]) is None


@pytest.mark.slow
def test_every_phase_of_a_renderer_from_random_weights_runs():
    steps = dry_run(stage1_config.tiny(), INDEX)
    assert [step.phase for step in steps] == ["vae", "motion", "frames", "temporal"]
    assert all(0 < step.kept <= step.activations for step in steps)


# --- the verdict --------------------------------------------------------------------------------------------------


def step_memory(**changes: Any) -> StepMemory:
    values: dict[str, Any] = {
        "phase": "motion model", "samples": 16, "frames": 512, "trained": 7_500_000_000, "parameters": 14 * GIB,
        "gradients": 2 * GIB, "optimizer": 5 * GIB, "averages": 0, "buckets": 1 * GIB, "batch": 0,
        "kept": 60 * GIB, "activations": 64 * GIB, "update": 2 * GIB, "overhead": 4 * GIB, "largest": [],
    }  # fmt: skip
    return StepMemory(**values | changes)


def test_a_misfit_names_the_option_that_helps():
    plain, machine = stage2_config.paper_7b(), MACHINES["A100"]
    without = replace(plain, train=replace(plain.train, gradient_checkpointing=False))
    assert misfit(step_memory(activations=54 * GIB), plain, machine) is None
    line = misfit(step_memory(), without, machine)
    assert line is not None
    assert "needs 90.0 GiB, and A100 has 80.0 GiB: try --train.gradient-checkpointing" in line
    line = misfit(step_memory(), plain, machine)
    assert line is not None
    # 54 of 64 GiB are left for the activations of 8,192 frames.
    frames = int(line.split("--train.budget-frames ")[1])
    assert frames == 6912 // 512 * 512
    assert misfit(step_memory(activations=64 * GIB * frames / 8192), plain, machine) is None
    assert "more ranks than --scale.ranks 16" in str(misfit(step_memory(optimizer=60 * GIB), plain, machine))
    assert "one sample of 512 frames" in str(misfit(step_memory(activations=2000 * GIB), plain, machine))


@pytest.mark.parametrize(("memory_bytes", "status"), [(80 * GIB, 0), (4.1e9, 1)])
def test_the_job_fails_where_the_training_would_not_fit(monkeypatch, capsys, memory_bytes, status):
    monkeypatch.setitem(MACHINES, "A100", replace(MACHINES["A100"], memory_bytes=memory_bytes))
    command = ["report.py", "dry-run", "stage2", "--gpu", "A100", "--", "tiny", "--scale.ranks", "4"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "path", [str(JOBS), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / "report.py"), run_name="__main__")
    assert ended.value.code == status
    shown = capsys.readouterr()
    assert "stage2 on 4 x A100" in shown.out
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == status
