"""Compare a step of the training loop with a step on resident batches, and FlexAttention with SDPA.

Resident batches are on the model's device before the step begins. Both steps use the same DeepSpeed engine.
"""

import dataclasses
import itertools
import tempfile
import time
from statistics import median
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from xactor.motion import DiffusionForcing, ForcingBatch, draw
from xactor.origin import AUDIO, LATENTS
from benches.data import AUDIO_WIDTH, LATENT_WIDTH, write_synthetic
from xactor_platform.data.index import CorpusShape
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import Cursor, planned_steps
from xactor_platform.data.stream import PlannedStream
from xactor_platform.training import stage2
from xactor_platform.training.engine import make_engine, peak_flops, use_bf16
from xactor_platform.training.loop import prepare_device, train_step
from xactor_platform.training.prefetch import Prefetch
from xactor_platform.training.run.clock import Clock
from xactor_platform.training.stage2_config import Stage2Config


def compare_loop(config: Stage2Config, *, rounds: int, use_gpu: bool) -> dict[str, Any]:
    """Compare `train_step` on batches of the data stream with the same engine on resident batches, on one rank.

    The two take turns, step by step, and get the same numbers of samples and frames.

    Args:
        config: Configuration of the training. The shards are replaced by noise.
        rounds: Number of steps that are timed, after one step that warms up.
        use_gpu: Whether the training worker gets a GPU.

    Returns:
        Figures for JSON: sizes; the median seconds of both steps; `ratio`, the median of the steps' ratios of loop to
        resident; and the frames per second, the share of waiting for data and the model FLOPs utilisation of the loop.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Write twice as many frames as the timed steps need.
        frames = 2 * rounds * config.train.micro_batches * config.train.budget_frames
        shards = f"{folder}/shards"
        # A float16 number has 2 bytes. The audio features have one layer.
        bytes_per_frame = 2 * (LATENT_WIDTH + AUDIO_WIDTH)
        write_synthetic(shards, frames * bytes_per_frame, 1, config.model.context_frames)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards))
        gpu = {"GPU": 1} if use_gpu else {}
        trainer = TorchTrainer(
            _measure,
            train_loop_config={"config": config, "rounds": rounds},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": config.scale.cpus_per_rank, **gpu},
            ),
            run_config=ray.train.RunConfig(name="bench", storage_path=folder),
        )
        measured = trainer.fit().return_value
        assert measured is not None
        return measured


def _measure(options: dict[str, Any]) -> dict[str, Any]:
    """Time the steps in a training worker, and return the figures of `compare_loop`."""
    config: Stage2Config = options["config"]
    rounds: int = options["rounds"]
    device = prepare_device(config)
    index = load_index(config.data.shards)
    width = index.frame_shape.latent_width
    # The noise needs no standardisation: mean 0 and standard deviation 1 for each number of a latent.
    facts = {"moments": ([0.0] * width, [1.0] * width), "audio_encoder": None, LATENTS: None, AUDIO: None}
    stage = stage2.Stage2(config, facts, index, rank=0, ranks=1, device=device)
    engine = make_engine(
        stage.objective,
        config.train,
        stage.parameter_groups(),
        ranks=1,
        bf16=use_bf16(config.train, device),
    )
    clock = Clock(device)
    loop_s, resident_s, waits_s, frames = [], [], [], []
    stream = PlannedStream(stage.reader, config.plan, rank=0, ranks=1, start=Cursor(), steps=rounds + 1)
    steps = planned_steps(index.frames, index.shard, config.plan, Cursor())
    batched = Prefetch(stream, stage, seed=config.train.seed, device=device)
    with stream, batched:
        for step in itertools.islice(steps, rounds + 1):
            batches = [_resident(b.frames, index.frame_shape, config, device) for b in step.micro_batches]
            begun = time.perf_counter()
            for batch in batches:
                engine.backward(engine(batch) / step.frames, scale_wrt_gas=False)
            engine.step()
            _finish(device)
            resident_s.append(time.perf_counter() - begun)
            train_step(engine, stage, batched, step, len(loop_s), config, clock)
            loop_s.append(clock.step_s)
            waits_s.append(clock.waited_s)
            frames.append(step.frames)
    # Leave out the first step of both, which warms up. In the loop it also waits for the first block of data.
    ratios = [loop / resident for loop, resident in zip(loop_s[1:], resident_s[1:], strict=True)]
    frames_per_s = sum(frames[1:]) / sum(loop_s[1:])
    parameters = sum(p.numel() for p in stage.objective.parameters())
    # Peak FLOP/s of the GPU; None if unknown.
    peak = peak_flops()
    return {
        "parameters": parameters,
        "frames_a_step": median(frames[1:]),
        "resident_step_s": median(resident_s[1:]),
        "loop_step_s": median(loop_s[1:]),
        "ratio": median(ratios),
        "data_wait_share": sum(waits_s[1:]) / sum(loop_s[1:]),
        "frames_per_s": frames_per_s,
        # Training takes 6 FLOPs per parameter and frame.
        "mfu": 6 * parameters * frames_per_s / peak if peak else None,
    }


def _resident(frames, shape: CorpusShape, config: Stage2Config, device: torch.device) -> ForcingBatch:
    """Make a batch of noise on the device, whose samples have the lengths `frames`."""
    lengths = torch.as_tensor(frames)
    max_frames, count = int(lengths.max()), len(lengths)
    draws = [
        draw(("bench", i), int(n), shape.latent_width, config.model.chunk_frames, config.forcing)
        for i, n in enumerate(lengths)
    ]
    return ForcingBatch.build(
        torch.randn(count, max_frames, shape.latent_width),
        torch.randn(count, max_frames, shape.audio_layers, shape.audio_width),
        lengths,
        torch.ones(count),
        draws,
    ).to(device)


def compare_attention(config: Stage2Config, *, rounds: int) -> dict[str, Any]:
    """Measure the model's forward pass with SDPA and with FlexAttention at the full context, in turn.

    On a GPU the backward pass is measured too. On a CPU FlexAttention has no backward pass.

    Returns:
        Figures for JSON. `seconds` are the medians over `rounds` passes, after one pass that warms up.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.scale.threads)
    shape = CorpusShape(
        latent_width=LATENT_WIDTH,
        audio_layers=1,
        audio_width=AUDIO_WIDTH,
        motion_dtype="float16",
        audio_dtype="float16",
    )
    count = max(1, config.train.budget_frames // config.model.context_frames)
    batch = _resident([config.model.context_frames] * count, shape, config, device)
    dtype = torch.bfloat16 if use_bf16(config.train, device) else torch.float32
    objectives = {}
    for name in ("sdpa", "flex_attention"):
        model = stage2.build_model(dataclasses.replace(config.model, attn_implementation=name), shape, seed=0)
        objectives[name] = DiffusionForcing(model, config.forcing).to(device, dtype)
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(rounds + 1):
        for name, objective in objectives.items():
            begun = time.perf_counter()
            with torch.set_grad_enabled(device.type == "cuda"):
                loss = objective(batch)
            if device.type == "cuda":
                loss.backward()
            _finish(device)
            times[name].append(time.perf_counter() - begun)
    seconds = {name: median(values[1:]) for name, values in times.items()}
    return {
        "device": str(device),
        "backward": device.type == "cuda",
        "seconds": seconds,
        "flex_over_sdpa": seconds["flex_attention"] / seconds["sdpa"],
    }


def _finish(device: torch.device) -> None:
    """Wait until a GPU has finished its work. On a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
