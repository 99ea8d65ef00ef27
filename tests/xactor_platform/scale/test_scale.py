"""Test that estimates agree with torch's memory tracker and with DeepSpeed's engine and estimators."""

import contextlib
import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xactor.motion import DiffusionForcing, ForcingBatch, ForcingConfig
from xactor_platform.data.index import CorpusShape
from xactor_platform.data.plan import PlanConfig, rank_micro_batches
from xactor_platform.scale.machine import MACHINES
from xactor_platform.scale.memory import activations, bucket_bytes, memory, peak_block, sizes_of, states
from xactor_platform.scale.simulation import Store, simulate_plan, simulate_stream
from xactor_platform.scale.step_time import flops_per_frame, step_time
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2_config import MotionConfig, paper_7b

SHAPE = CorpusShape(
    latent_width=512, audio_layers=3, audio_width=768, motion_dtype="float16", audio_dtype="float16"
)
SMALL = MotionConfig(
    hidden=384, layers=6, heads=6, kv_heads=2, mlp=2048, audio_width=256, chunk_frames=64, context_frames=512
)
ENGINE = Path(__file__).with_name("scale_engine.py")


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper():
    return sizes_of(paper_7b().model, SHAPE)


def test_the_papers_model_is_counted_without_allocating_it(paper):
    assert 7.2e9 < paper.parameters < 7.8e9
    assert 0.95 < paper.blocks / paper.parameters < 1


def test_a_counted_model_has_as_many_parameters_as_a_built_one():
    sizes, model = sizes_of(SMALL, SHAPE), build_model(SMALL, SHAPE, seed=0)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    blocks = [*model.backbone.layers.parameters(), *model.audio_attention.parameters()]
    assert sizes.blocks == sum(p.numel() for p in blocks)


@pytest.mark.parametrize("ranks", [2, 8, 16, 64, 1024])
def test_states_of_7b_equal_deepspeeds_own_estimate(paper, ranks):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    nodes, gpus = math.ceil(ranks / 8), min(ranks, 8)
    _, zero2 = estimate_zero2_model_states_mem_needs(paper.parameters, gpus, nodes, cpu_offload=False)
    # DeepSpeed's estimate for stage 2 includes a share of the gradients in bf16, which its engine no longer keeps: the
    # next test compares the states with the engine's.
    bf16_gradients = 2 * paper.parameters / ranks
    zero2_states = sum(states(paper.parameters, ranks=ranks, stage=2))
    assert zero2_states + bf16_gradients == pytest.approx(zero2, rel=0.01)
    # DeepSpeed's estimate for stage 3 includes the gathered weights of the largest layer, which are not states.
    largest_layer = 0
    _, zero3, _ = estimate_zero3_model_states_mem_needs(
        paper.parameters, largest_layer, gpus, nodes, cpu_offload=False, cpu_offload_params=False
    )
    assert sum(states(paper.parameters, ranks=ranks, stage=3)) == pytest.approx(zero3, rel=0.12)


@pytest.mark.slow
def test_states_equal_the_bytes_that_a_deepspeed_engine_holds(tmp_path):
    ranks = 2
    commands = [
        [sys.executable, str(ENGINE), str(r), str(ranks), str(tmp_path / "meet")] for r in range(ranks)
    ]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for text in printed:
        held = [line.split()[1:] for line in text.splitlines() if line.startswith("held ")]
        assert held, text[-2000:]
        parameters, size, backward = map(int, held[0])
        _, gradients, optimizer = states(parameters, ranks=ranks, stage=2)
        assert 2 * parameters + gradients + optimizer == pytest.approx(size, rel=0.01)
        # The bucket of 400 MB, whose size does not depend on the model, would hide the rest.
        bucket = bucket_bytes(0)
        assert bucket_bytes(parameters) - bucket + gradients == pytest.approx(backward - bucket, rel=0.1)


def measured_activations(config: MotionConfig, samples: int, *, checkpointing: bool, fake: bool) -> float:
    """Return the peak memory of a forward and backward pass in bf16 without the weights, in bytes, as torch tracks it.

    Args:
        config: The model.
        samples: Samples of the batch.
        checkpointing: Whether activations are checkpointed.
        fake: Whether the tensors have only sizes and no memory.
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    frames = config.context_frames
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = build_model(replace(config, backbone=None), SHAPE, seed=0)
        finally:
            torch.set_default_dtype(torch.float32)
        if checkpointing:
            model.enable_checkpointing()
        objective = DiffusionForcing(model, ForcingConfig()).train()
        for parameter in objective.parameters():
            # Gradients are no activations.
            parameter.register_post_accumulate_grad_hook(lambda tensor: setattr(tensor, "grad", None))
        batch = ForcingBatch(
            z=torch.randn(samples, frames, SHAPE.latent_width),
            audio=torch.randn(samples, frames, SHAPE.audio_layers, SHAPE.audio_width),
            frames=torch.full((samples,), frames),
            weight=torch.ones(samples),
            eps=torch.randn(samples, frames, SHAPE.latent_width),
            k=torch.randint(0, 1001, (samples, frames)),
            keep=torch.ones(samples),
        )
        tracker = MemTracker()
        tracker.track_external(objective)
        with tracker:
            objective(batch).backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    return peak["Total"] - weights


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
# torch's tracker looks at gradients that are dropped.
@pytest.mark.filterwarnings("ignore:Expected a tensor or a traceable wrapper-subclass:UserWarning")
# The small model has real tensors, which takes a minute.
@pytest.mark.parametrize("size", [pytest.param("small", marks=pytest.mark.soak), "wide"])
def test_activations_equal_those_that_torch_tracks(size, checkpointing):
    """Compare a small model, and three layers of the paper's size, whose tensors have no memory."""
    config = SMALL if size == "small" else replace(paper_7b().model, layers=3)
    # With fewer samples, the gradients at the end would need more memory than the activations.
    samples = 2 if size == "small" else 16
    sizes, frames = sizes_of(config, SHAPE), samples * config.context_frames
    estimated = frames * activations(sizes, config.context_frames, checkpointing=checkpointing)
    if checkpointing:
        estimated += frames * peak_block(sizes, config.context_frames)
    measured = measured_activations(config, samples, fake=size == "wide", checkpointing=checkpointing)
    assert estimated == pytest.approx(measured, rel=0.1)


def test_memory_falls_with_every_stage_and_with_ranks(paper):
    options = {"budget_frames": 8192, "context_frames": 512, "checkpointing": True}
    by_stage = [memory(paper, ranks=16, stage=stage, **options).states for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)
    assert (
        memory(paper, ranks=64, stage=2, **options).total < memory(paper, ranks=16, stage=2, **options).total
    )
    # The paper trained the model on 16 A100. Micro-batches of twice as many frames fit too.
    for budget in (8192, 16_384):
        fits = memory(paper, ranks=16, stage=2, **(options | {"budget_frames": budget}))
        assert fits.total < MACHINES["A100"].memory_bytes
    assert memory(paper, ranks=16, stage=2, **(options | {"checkpointing": False})).total > 80 * 2**30


def test_arguments_out_of_bounds_are_refused(paper):
    options = {"budget_frames": 8192, "context_frames": 512, "checkpointing": True}
    with pytest.raises(ValueError, match=r"stage must be one of 0\.\.3, got 4"):
        memory(paper, ranks=16, stage=4, **options)
    with pytest.raises(ValueError, match="ranks must be >= 1, got 0"):
        memory(paper, ranks=0, stage=2, **options)
    with pytest.raises(ValueError, match=r"ranks must divide micro_batches \(16\), got 3"):
        step_time(paper, MACHINES["A100"], ranks=3, stage=2, micro_batches=16, **options)


# --- time ---------------------------------------------------------------------------------------------------------


def test_flops_equal_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(paper_7b().model, layers=2)
    sizes, frames = sizes_of(config, SHAPE), config.context_frames
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(replace(config, backbone=None), SHAPE, seed=0)
        z, k = torch.randn(1, frames, 512), torch.randint(0, 1001, (1, frames))
        with FlopCounterMode(display=False) as counter:
            audio = model.embed_audio(torch.randn(1, frames, 3, 768))
            audio = torch.nn.functional.pad(audio, (0, 0, 2, 2))
            model(z, k, audio, torch.ones(1, frames + 4, dtype=torch.bool)).sum().backward()
    counted = counter.get_total_flops() / frames
    assert flops_per_frame(sizes, frames, checkpointing=False) == pytest.approx(counted, rel=0.05)


def test_more_ranks_of_a_fixed_step_are_faster_and_less_efficient(paper):
    options = {"stage": 2, "micro_batches": 64, "budget_frames": 8192, "context_frames": 512}
    times = [
        step_time(paper, MACHINES["A100"], ranks=ranks, checkpointing=True, **options)
        for ranks in (8, 16, 64)
    ]
    assert [t.total_s for t in times] == sorted((t.total_s for t in times), reverse=True)
    # The network of the second node is slower than NVLink.
    assert times[0].mfu > times[1].mfu
    assert times[0].frames == 64 * 8192
    for t in times:
        assert 0 < t.mfu < 0.4
        # Nearly all of the reducing overlaps with backward passes that take longer. The last bucket does not.
        assert t.reduce_s < 0.7 * t.compute_s
        assert 0.95 * t.reduce_s < t.hidden_s < t.reduce_s


def test_one_rank_reduces_nothing(paper):
    alone = step_time(
        paper,
        MACHINES["H100"],
        ranks=1,
        stage=2,
        micro_batches=2,
        budget_frames=8192,
        context_frames=512,
        checkpointing=False,
    )
    assert (alone.reduce_s, alone.gather_s, alone.hidden_s) == (0, 0, 0)
    # MFU counts operations of parameters, not of attention.
    assert alone.mfu == pytest.approx(0.4, rel=0.1)


# --- the plan and the stream --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> tuple[np.ndarray, np.ndarray]:
    lengths = np.random.default_rng(0).integers(25, 1500, 6000)
    return lengths, np.arange(len(lengths)) // 64


@pytest.mark.parametrize("ranks", [16, 128])
def test_all_planned_frames_are_assigned(corpus, ranks):
    lengths, shard = corpus
    config = PlanConfig(micro_batches=ranks, budget_frames=4096, context_frames=512)
    facts, plan, costs = simulate_plan(lengths, shard, config, ranks)
    assert costs.shape == (facts.steps, ranks)
    step = plan.step(1)
    dealt = [rank_micro_batches(step, rank, ranks)[0].padded_frames for rank in range(ranks)]
    assert costs[1].tolist() == dealt
    assert facts.frames == lengths.sum()
    real = costs.sum() * (1 - facts.padding)
    assert facts.frames <= real * 1.001
    assert costs.max() <= 4096
    assert 0 <= facts.waiting < 0.6
    assert facts.fillers == pytest.approx(1 - plan.micro_batches / (facts.steps * ranks))


def streamed(corpus, *, store: Store, seconds_per_frame: float = 5e-4, ranks: int = 16, **options):
    lengths, shard = corpus
    config = PlanConfig(micro_batches=ranks, budget_frames=4096, context_frames=512)
    _, plan, costs = simulate_plan(lengths, shard, config, ranks)
    given = {"bytes_per_frame": 7168, "reduce_s": 0.1, "cpus_per_rank": 8} | options
    return simulate_stream(
        costs, plan, MACHINES["A100"], seconds_per_frame=seconds_per_frame, store=store, **given
    )


def test_ranks_do_not_wait_for_a_fast_store(corpus):
    facts = streamed(corpus, store=Store())
    assert facts.data_wait < 0.01
    # Each of a node's eight ranks trains on at most 4096 frames per step of 2.1 s.
    step_s = 4096 * 5e-4 + 0.1
    max_bytes_s = 8 * 4096 * 7168 / step_s
    assert 0.5 < facts.node_bytes_s / max_bytes_s < 1.02


def test_ranks_wait_for_a_slow_store(corpus):
    slow = streamed(corpus, store=Store(cpu_bytes_s=2e6))
    # Each rank has four reading tasks of 2 MB/s and trains on 14 MB/s.
    assert slow.data_wait > 0.3
    assert slow.node_bytes_s < 8 * 4 * 2e6 * 1.05
    late = streamed(corpus, store=Store(request_s=3.0))
    assert late.data_wait > streamed(corpus, store=Store()).data_wait
    assert late.first_s > 3


def test_a_node_without_a_cpu_for_reading_is_refused(corpus):
    with pytest.raises(ValueError, match=r"cpus_per_rank must leave each of the 8 ranks .* got 12"):
        streamed(corpus, store=Store(), cpus_per_rank=12)


# --- the job ------------------------------------------------------------------------------------------------------


def test_the_job_prints_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    jobs = Path(__file__).resolve().parents[3] / "jobs"
    output = tmp_path / "scale.json"
    command = ["report.py", "scale", "small", "--gpus", "H200", "--ranks", "512", "1024", "--budgets", "8192"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output)])
    monkeypatch.setattr(sys, "path", [str(jobs), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(jobs / "report.py"), run_name="__main__")
    assert ended.value.code == 0
    report = json.loads(output.read_text())
    assert {row["ranks"] for row in report["plan"]} == {512, 1024}
    assert {row["zero"] for row in report["memory"]} == {0, 1, 2, 3}
    assert all(row["fits"] == "H200" for row in report["memory"] if row["checkpointing"])
    shown = capsys.readouterr().out
    assert "Memory of a rank, 0." in shown
    assert "An epoch of 440,000 clips" in shown
