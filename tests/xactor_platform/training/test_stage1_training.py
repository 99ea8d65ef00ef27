"""Test training of stage 1 with Ray Train and DeepSpeed ZeRO-2: phases, resuming, ranks, a bad video and averages."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import nn

from xactor.render import MotionEncoder, RenderConfig, Renderer
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import Cursor, planned_steps
from xactor_platform.training.averages import Averages
from xactor_platform.training.launch import train
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.run_log import last_attempts
from xactor_platform.training.stage1 import Stage1, build_objective
from xactor_platform.training.stage1_config import (
    RendererConfig,
    Stage1Config,
    Stage1TrainConfig,
    VideoDataConfig,
)
from xactor_platform.training.train_config import RunConfig, ScaleConfig

VAE_STEPS, MOTION_STEPS, FRAMES_STEPS, STEPS = 4, 2, 8, 18
# The first half of an interrupted run ends in the frames phase.
EVERY, HALF = 6, 9


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, as the ranks do. In such small operations, more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def videos(video_corpus) -> str:
    """Write 14 training clips, one of which is damaged, and 4 held-out clips."""
    folder, _ = video_corpus([30, 40, 50, 64] * 3 + [20, 90], samples_per_shard=5, tracks=True)
    video_corpus([40, 50, 30, 60], "test", folder=folder, tracks=True)
    index = load_index(folder)
    row = index.key.tolist().index("train-0003")
    with (Path(folder) / index.shard_names[index.shard[row]]).open("r+b") as file:
        file.seek(int(index.offset["mp4"][row]))
        file.write(b"no video" * 30)
    return folder


def config_of(videos: str, storage: Path, name: str, *, ranks: int = 2, **train) -> Stage1Config:
    options = {
        "steps": STEPS,
        "vae_steps": VAE_STEPS,
        "motion_steps": MOTION_STEPS,
        "frames_steps": FRAMES_STEPS,
        "stills": 2,
        "micro_batches": 2,
        "budget_frames": 16,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "evaluate_every": EVERY,
        "evaluate_frames": 32,
        "checkpoint_every": EVERY,
        "keep_checkpoints": 9,
        "sheet_rows": 2,
        "sheet_steps": 2,
        "log_samples": True,
        **train,
    }
    return Stage1Config(
        run=RunConfig(storage=str(storage), name=name),
        scale=ScaleConfig(ranks=ranks, cpus_per_rank=0.5, start_timeout_s=5, max_failures=0),
        data=VideoDataConfig(shards=videos, max_bad_fraction=0.3),
        model=RendererConfig(
            image_size=32,
            window_frames=8,
            channels=(16, 32),
            vae_channels=(16, 32),
            latent_channels=8,
            encoder_channels=(8, 8, 16),
            encoder_size=32,
            guess_channels=(8, 8, 16),
            heads=2,
            motion_width=80,
            motion_tokens=4,
            latent_dim=32,
        ),
        train=Stage1TrainConfig(**options),
    )


def rows(storage: Path, name: str, file: str = "metrics.jsonl") -> list[dict]:
    return RunFolder(str(storage), name).read_lines(file)


def checkpoint(storage: Path, name: str, step: int) -> dict:
    file = storage / name / f"checkpoint-{step:08d}" / "state" / "mp_rank_00_model_states.pt"
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def whole_run(ray_cluster, videos, tmp_path_factory):
    """Train a run on two ranks without interruption. Return its storage and result."""
    storage = tmp_path_factory.mktemp("runs")
    return storage, train(config_of(videos, storage, "whole"))


@pytest.fixture(scope="module")
def half_a_run(ray_cluster, videos, tmp_path_factory) -> Path:
    """Train the first half of a run, and return its folder. Tests copy the folder."""
    storage = tmp_path_factory.mktemp("runs")
    train(config_of(videos, storage, "half", steps=HALF))
    return storage / "half"


@pytest.mark.cluster
def test_a_run_writes_metrics_sheets_and_an_export(whole_run, videos):
    storage, result = whole_run
    metrics = rows(storage, "whole")
    assert [r["step"] for r in metrics] == list(range(1, STEPS + 1))
    phases = ["vae"] * VAE_STEPS + ["motion"] * MOTION_STEPS + ["frames"] * FRAMES_STEPS
    assert [r["phase"] for r in metrics] == phases + ["temporal"] * (STEPS - len(phases))
    # A step has two micro-batches of two windows. It uses two stills of each window, which are 8 frames, and in the
    # last phase all eight frames of each window, which are 32.
    full = [r["frames"] for r in metrics if r["frames"] in (8, 32)]
    assert len(full) >= STEPS - 2
    assert [r["step"] for r in metrics if "held_out_loss" in r] == [6, 12, 18]
    assert all(np.isfinite(r["loss"]) and r["grad_norm"] > 0 for r in metrics)
    assert result.last == metrics[-1]

    folder = storage / "whole"
    saved = json.loads((folder / "config.json").read_text())
    assert Stage1Config.from_dict(saved["config"]) == config_of(videos, storage, "whole")
    sheets = sorted(p.name for p in (folder / "sheets").iterdir())
    assert sheets == [f"step-{step:08d}.png" for step in (6, 12, 18)]
    with Image.open(folder / "sheets" / sheets[-1]) as sheet:
        assert sheet.size == (3 * 32 + 2 * 2, 2 * 32 + 2)
    renderer = Renderer.from_pretrained(result.export)
    assert (renderer.image_size, renderer.latent_dim) == (32, 32)
    z = renderer.components.motion_encoder.encode(np.zeros((3, 32, 32, 3), np.uint8))
    reference = renderer.reference(np.zeros((32, 32, 3), np.uint8))
    pictures = renderer.window(reference, z, seed=0, first_frame=0, config=RenderConfig(steps=2))
    assert pictures.shape == (3, 32, 32, 3)


@pytest.mark.cluster
def test_every_good_window_is_trained_on_once_an_epoch_and_the_bad_video_is_named(whole_run, videos):
    storage, _ = whole_run
    index = load_index(videos).training()
    plan = config_of(videos, storage, "whole").plan
    planned: dict[int, list] = {}
    for step in planned_steps(index.frames, index.shard, plan, Cursor()):
        if step.cursor.epoch > 0:
            break
        planned[step.cursor.step + 1] = sorted(
            (index.key[row], int(start), int(frames))
            for batch in step.micro_batches
            if not batch.is_filler
            for row, start, frames in zip(batch.row, batch.start, batch.frames, strict=True)
            if index.key[row] != "train-0003"
        )
    trained: dict[int, list] = {}
    for r in rows(storage, "whole", "samples.jsonl"):
        trained.setdefault(r["step"], []).extend(map(tuple, r["samples"]))
    assert len(trained) == STEPS
    for step, samples in trained.items():
        if step in planned:
            assert sorted(samples) == planned[step]
    bad = rows(storage, "whole", "bad_samples.jsonl")
    assert {b["key"] for b in bad} == {"train-0003"}
    assert bad[0]["reason"] == "mp4 differs from its checksum"


@pytest.mark.cluster
def test_a_phase_changes_only_its_own_parameters_and_ends_with_their_averages(whole_run):
    storage, result = whole_run
    states = {step: checkpoint(storage, "whole", step) for step in (6, 12, 18)}
    models = {step: state["module"] for step, state in states.items()}
    temporal = {n for n in models[6] if "motion_modules" in n}
    vae = {n for n in models[6] if n.startswith("vae.decoder.")}
    encoder = {n for n in models[6] if n.startswith("motion_encoder.")}
    assert temporal
    assert vae

    def changed(first: int, last: int) -> set[str]:
        return {n for n, value in models[first].items() if not torch.equal(value, models[last][n])}

    # Step 6: four steps trained the VAE, whose weights were then replaced by their averages, bit by bit. Two steps
    # trained the motion encoder.
    names = [n for n, _ in build_objective(config_of("", storage, "x")).named_parameters()]
    vae_names = [n for n in names if n in vae]
    averages = states[6]["stage"]["averages"]["vae"]
    assert len(vae_names) == len(averages)
    for name, average in zip(vae_names, averages, strict=True):
        torch.testing.assert_close(models[6][name], average, rtol=0, atol=0)
    # Steps 7 to 12 train on frames: the renderer and the motion encoder change, and the temporal layers do not.
    assert not changed(6, 12) & (vae | temporal)
    assert changed(6, 12) & encoder
    assert {n for n in changed(6, 12) if n.startswith("reference_unet.")}
    # Steps 13 to 18 train on frames and then on windows: the temporal layers change, and the VAE stays frozen.
    assert changed(12, 18) & temporal
    assert not changed(12, 18) & vae
    # The export has the averages of the last phase, not the weights of the last step.
    exported = Renderer.from_pretrained(result.export).components.unet.state_dict()
    assert any(
        not torch.equal(exported[n.removeprefix("unet.")], models[18][n])
        for n in temporal
        if n.startswith("unet.")
    )
    exported_encoder = MotionEncoder.from_pretrained(Path(result.export) / "motion_encoder").state_dict()
    for name, value in exported_encoder.items():
        assert torch.equal(value, models[18][f"motion_encoder.{name}"]), name


# This is a soak test because others cover most of it: the next test resumes with one rank, and test_crashes.py kills
# and resumes stage 2.
@pytest.mark.soak
@pytest.mark.cluster
def test_a_resumed_run_equals_the_uninterrupted_one(whole_run, half_a_run, videos, tmp_path):
    storage, _ = whole_run
    shutil.copytree(half_a_run, tmp_path / "parts")
    result = train(config_of(videos, tmp_path, "parts"))
    expected, got = rows(storage, "whole"), rows(tmp_path, "parts")
    assert [r["attempt"] for r in got] == [1] * HALF + [2] * (STEPS - HALF)
    for name in ("step", "phase", "loss", "grad_norm", "frames", "lr"):
        assert [r[name] for r in got] == [r[name] for r in expected], name
    assert got[-1]["held_out_loss"] == expected[-1]["held_out_loss"]
    samples = [(r["step"], r["rank"], r["samples"]) for r in rows(tmp_path, "parts", "samples.jsonl")]
    assert samples == [(r["step"], r["rank"], r["samples"]) for r in rows(storage, "whole", "samples.jsonl")]
    for weights in sorted((storage / "whole" / "export").rglob("*.safetensors")):
        file = os.path.relpath(weights, storage / "whole" / "export")
        assert (Path(result.export) / file).read_bytes() == weights.read_bytes(), file
    sheet = f"sheets/step-{STEPS:08d}.png"
    assert (tmp_path / "parts" / sheet).read_bytes() == (storage / "whole" / sheet).read_bytes()


@pytest.mark.cluster
def test_one_rank_continues_a_run_of_two(whole_run, videos, tmp_path):
    """Resume from a checkpoint of two ranks within a phase, when some parameters never had a gradient."""
    storage, _ = whole_run
    shutil.copytree(storage / "whole", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / f"checkpoint-{STEPS:08d}")
    train(config_of(videos, tmp_path, "one", ranks=1))
    run = rows(tmp_path, "one")
    assert [r["step"] for r in run if r["attempt"] == 2] == list(range(2 * EVERY + 1, STEPS + 1))
    for one, two in zip(last_attempts(run, STEPS), rows(storage, "whole"), strict=True):
        assert (one["frames"], one["phase"], one["lr"]) == (two["frames"], two["phase"], two["lr"])
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)
        if "held_out_loss" in two:
            assert one["held_out_loss"] == pytest.approx(two["held_out_loss"], rel=1e-3)
    bad = [
        {b["key"] for b in rows(where, name, "bad_samples.jsonl")}
        for where, name in ((storage, "whole"), (tmp_path, "one"))
    ]
    assert bad[0] == bad[1]


def test_unusable_shards_and_models_are_named(videos, corpus, tmp_path):
    config = config_of(videos, tmp_path, "x")
    with pytest.raises(ValueError, match="holds latents, not videos"):
        train(replace(config, data=VideoDataConfig(shards=corpus([20, 30]))))
    with pytest.raises(
        ValueError, match=r"window_frames must be <= 90, the frames of the longest clip, got 96"
    ):
        train(
            replace(
                config,
                model=replace(config.model, window_frames=96),
                train=replace(config.train, budget_frames=96),
            )
        )
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 30"):
        train(replace(config, model=replace(config.model, image_size=30)))
    published = replace(
        config,
        model=RendererConfig(sd15=str(tmp_path)),
        train=replace(config.train, budget_frames=16, vae_steps=0),
    )
    with pytest.raises(FileNotFoundError, match=r"no weights in .*unet: config\.json is missing"):
        train(published)
    assert not (tmp_path / "x").exists()


def test_each_phase_trains_its_own_groups_after_its_own_warm_up(videos):
    config = config_of(videos, Path("x"), "x", temporal_learning_rate=3e-4, vae_learning_rate=2e-3)
    stage = Stage1(config, {}, load_index(videos), rank=0, ranks=1, device=torch.device("cpu"))
    rates = np.array([stage.rates(step) for step in range(STEPS)])  # [steps, groups]
    starts = np.cumsum([0, VAE_STEPS, MOTION_STEPS, FRAMES_STEPS])
    frames = slice(starts[2], starts[3])
    # In the frames phase the motion encoder and the frames group are trained, in the others only their own group.
    assert (np.delete(rates, frames, axis=0) > 0).sum(1).tolist() == [1] * (STEPS - FRAMES_STEPS)
    assert ((rates[frames] > 0) == [False, True, True, False]).all()
    assert rates.max(0) == pytest.approx([2e-3, 1e-3, 1e-3, 3e-4])
    # In the frames phase the motion encoder has a tenth of its learning rate.
    assert rates[frames, 1].max() == pytest.approx(1e-4)
    for group, first in enumerate(starts):
        assert rates[first + 1, group] == pytest.approx(2 * rates[first, group])
    groups = stage.parameter_groups()
    vae, *others = groups
    for step in (0, 1):
        stage.begin(step)
        assert all(p.requires_grad for p in vae)
        assert [all(p.requires_grad for p in group) for group in others] == [False] * 3
        assert not any(p.requires_grad for group in others for p in group)


def test_averages_follow_the_parameters_and_replace_them_for_a_while():
    parameter = nn.Parameter(torch.zeros(2))
    averages = Averages([parameter], decay=0.5)
    expected = 0.0
    for number in range(12):
        with torch.no_grad():
            parameter.fill_(number + 1)
        averages.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * (number + 1)
    assert averages.state()[0].tolist() == pytest.approx([expected] * 2)
    with averages.applied():
        assert parameter.tolist() == pytest.approx([expected] * 2)
    assert parameter.tolist() == [12, 12]
    again = Averages([nn.Parameter(torch.zeros(2))], decay=0.5)
    again.load_state(averages.state())
    assert torch.equal(again.state()[0], averages.state()[0])


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        config = config_of("", Path("x"), "x", gradient_checkpointing=checkpointing)
        objective = build_objective(config)
        generator = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (1, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
        # The temporal layers start with an output of zero, which would hide gradients.
        with torch.no_grad():
            for layer in objective.unet.temporal_layers():
                nn.init.normal_(layer.proj_out.weight, std=0.1, generator=generator)
        loss = objective(frames, frames[:, 0], torch.ones(1), [(0, 0, "a", 0)], "temporal")
        loss.backward()
        grads.append({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    assert any("reference_unet" in name for name in plain)
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, msg=name)


def test_published_weights_render_at_the_configured_size(tmp_path):
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=80,
    ).save_pretrained(tmp_path / "unet")
    AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
    ).save_pretrained(tmp_path / "vae")
    config = config_of("", tmp_path, "x")
    for model in (
        RendererConfig(sd15=str(tmp_path), image_size=32, window_frames=8),
        replace(config.model, vae=str(tmp_path / "vae"), vae_channels=(16, 32, 64)),
    ):
        objective = build_objective(replace(config, model=model, train=replace(config.train, vae_steps=0)))
        groups = objective.parameter_groups()
        assert not groups["vae"]
        assert groups["frames"]
        assert objective.vae.config["block_out_channels"] == [16, 32]
        renderer = Renderer(
            objective.motion_encoder,
            objective.unet,
            objective.reference_unet,
            objective.vae,
            objective.scheduler,
        )
        assert renderer.image_size == 32
