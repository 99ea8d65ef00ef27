"""Test training of stage 2 with Ray Train and DeepSpeed ZeRO-2: resuming, ranks, bad samples, and a run's files."""

import contextlib
import json
import re
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from small_run import BAD_CLIP, EVERY, STEPS, config_of, rows

from xactor.motion import load_motion_model
from xactor_platform.training.engine import learning_rate
from xactor_platform.training.launch import train
from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.lease import RunIsTaken, lease
from xactor_platform.training.run.run_log import RunLog, last_attempts
from xactor_platform.training.stage2_config import (
    LatentDataConfig,
    MotionConfig,
    Stage2Config,
    paper_7b,
    small,
    tiny,
)
from xactor_platform.training.train_config import RunConfig, ScaleConfig, TrainConfig, as_dict, refuse_changes


def trained_on(storage: Path, name: str) -> dict[int, list]:
    """Return the samples of each step, over all ranks, from the last attempt at the step."""
    logged = rows(storage, name, "samples.jsonl")
    last_attempt: dict[int, int] = {}
    for r in logged:
        last_attempt[r["step"]] = max(r["attempt"], last_attempt.get(r["step"], 0))
    steps: dict[int, list] = {}
    for r in logged:
        if r["attempt"] == last_attempt[r["step"]]:
            steps.setdefault(r["step"], []).extend(map(tuple, r["samples"]))
    return {step: sorted(samples) for step, samples in sorted(steps.items())}


@pytest.mark.cluster
def test_a_run_writes_metrics_checkpoints_and_an_export(whole_run, shards):
    storage, result = whole_run
    metrics = rows(storage, "whole")
    assert [r["step"] for r in metrics] == list(range(1, STEPS + 1))
    columns = "step epoch loss lr grad_norm frames padding step_s data_wait_s frames_per_s mfu skipped"
    assert all(set(columns.split()) <= set(r) for r in metrics)
    evaluated = {r["step"]: r["held_out_loss"] for r in metrics if "held_out_loss" in r}
    assert list(evaluated) == list(range(EVERY, STEPS + 1, EVERY))
    assert evaluated[STEPS] < 0.9 * evaluated[EVERY]
    assert result.last == metrics[-1]

    folder = storage / "whole"
    saved = json.loads((folder / "config.json").read_text())
    assert Stage2Config.from_dict(saved["config"]) == config_of(shards, storage, "whole")
    kept = {p.name for p in folder.iterdir() if p.name.startswith("checkpoint-")}
    assert kept >= {f"checkpoint-{step:08d}" for step in (36, 48, 60)}
    model = load_motion_model(folder / "export")
    assert (model.config.latent_dim, model.config.audio_layers, model.config.audio_dim) == (6, 2, 5)
    torch.testing.assert_close(model.latent_mean, torch.tensor(saved["moments"][0]))
    assert (folder / "export" / "motion_scheduler" / "scheduler_config.json").exists()


@pytest.mark.cluster
def test_every_sample_is_trained_on_once_an_epoch(whole_run, shards):
    storage, _ = whole_run
    logged = rows(storage, "whole", "samples.jsonl")
    assert {(r["step"], r["rank"]) for r in logged} == {(s, r) for s in range(1, STEPS + 1) for r in (0, 1)}
    epochs = {m["step"]: m["epoch"] for m in rows(storage, "whole")}
    first = [tuple(s) for r in logged if epochs[r["step"]] == 0 for s in r["samples"]]
    assert len(first) == len(set(first))
    if max(epochs.values()) > 0:
        frames: dict[str, int] = {}
        for key, _, count in first:
            frames[key] = frames.get(key, 0) + count
        assert len(frames) == 39  # all training clips but the bad one
        assert BAD_CLIP not in frames


@pytest.mark.cluster
def test_a_run_continues_with_other_ranks_and_skips_a_corrupt_checkpoint(whole_run, shards, tmp_path):
    storage, _ = whole_run
    run_folder = tmp_path / "parts"
    shutil.copytree(storage / "whole", run_folder)
    shutil.rmtree(run_folder / f"checkpoint-{STEPS:08d}")
    part = next((run_folder / "checkpoint-00000048").rglob("*optim_states.pt"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    train(config_of(shards, tmp_path, "parts", scale={"ranks": 1}, steps=50))
    train(config_of(shards, tmp_path, "parts", scale={"ranks": 2}))
    run = rows(tmp_path, "parts")
    assert [(r["step"], r["attempt"]) for r in run] == [
        *((s, 1) for s in range(1, STEPS + 1)),
        *((s, 2) for s in range(37, 51)),
        *((s, 3) for s in range(51, STEPS + 1)),
    ]
    expected, got = rows(storage, "whole"), last_attempts(run, STEPS)
    for one, two in zip(got, expected, strict=True):
        assert one["frames"] == two["frames"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    assert got[-1]["held_out_loss"] == pytest.approx(expected[-1]["held_out_loss"], rel=1e-4)
    assert trained_on(tmp_path, "parts") == trained_on(storage, "whole")
    kept = sorted(p.name for p in run_folder.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{step:08d}" for step in (48, 50, 60)]


@pytest.mark.cluster
def test_a_sample_with_nan_is_skipped_within_the_bound_and_stops_the_run_past_it(whole_run, shards, tmp_path):
    storage, _ = whole_run
    assert all(np.isfinite(r["loss"]) for r in rows(storage, "whole"))
    config = config_of(shards, tmp_path, "nan", scale={"ranks": 1})
    with pytest.raises(RuntimeError, match=rf"{BAD_CLIP}.*"):
        train(replace(config, data=replace(config.data, max_bad_fraction=0.0)))
    for run in (rows(storage, "whole", "bad_samples.jsonl"), rows(tmp_path, "nan", "bad_samples.jsonl")):
        assert {(b["key"], b["reason"]) for b in run} == {(BAD_CLIP, "holds NaN or infinity")}


@pytest.mark.cluster
def test_too_few_cpus_for_reading_data_are_refused(ray_cluster, shards, tmp_path):
    config = config_of(shards, tmp_path, "greedy")
    config = replace(config, scale=ScaleConfig(ranks=4, cpus_per_rank=1, start_timeout_s=1))
    with pytest.raises(ValueError, match=r"has 4 CPUs, but 4 ranks of 1 and 1 for reading data need 5"):
        train(config)
    assert not (tmp_path / "greedy" / "config.json").exists()


@pytest.mark.cluster
def test_a_run_does_not_change_its_config_or_resume_from_nothing(whole_run, shards):
    storage, _ = whole_run
    changed = config_of(shards, storage, "whole", learning_rate=0.5)
    with pytest.raises(ValueError, match=r"train\.learning_rate was 0\.01, now 0\.5"):
        train(changed)
    fresh = config_of(shards, storage, "nothing")
    fresh = replace(fresh, run=replace(fresh.run, resume=True))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(fresh)


@pytest.mark.cluster
def test_a_run_without_steps_left_is_exported(whole_run, shards, tmp_path):
    """A run that was stopped is told that the step where it stopped is its last one."""
    storage, _ = whole_run
    shutil.copytree(storage / "whole", tmp_path / "run")
    exported = tmp_path / "run" / "export" / "motion" / "model.safetensors"
    wanted = exported.read_bytes()
    shutil.rmtree(tmp_path / "run" / "export")
    assert train(config_of(shards, tmp_path, "run", scale={"ranks": 1})).stopped is None
    assert exported.read_bytes() == wanted


@pytest.mark.cluster
def test_a_run_resumes_only_with_its_own_corpus_checkpoint_and_driver(whole_run, shards, tmp_path):
    """Each case is refused before the training starts."""
    storage, _ = whole_run
    run = tmp_path / "run"
    shutil.copytree(storage / "whole", run)
    config = config_of(shards, tmp_path, "run")
    with pytest.raises(
        ValueError, match=rf"train\.steps must be >= {STEPS}, the steps that .* has done, got 59"
    ):
        train(config_of(shards, tmp_path, "run", steps=STEPS - 1))
    with (
        lease(RunFolder(str(tmp_path), "run")),
        pytest.raises(RunIsTaken, match=r"is being trained by process \d+ on"),
    ):
        train(config)
    saved = json.loads((run / "config.json").read_text())
    first = next(name for name in saved["shard_digests"] if name.startswith("train-"))
    (run / "config.json").write_text(
        json.dumps(saved | {"shard_digests": saved["shard_digests"] | {first: "another"}})
    )
    with pytest.raises(
        ValueError, match=rf"differs from the corpus that this run began with: shards 1 changed \({first}\)"
    ):
        train(config)
    (run / "config.json").write_text(json.dumps(saved))
    path = run / f"checkpoint-{STEPS:08d}" / "manifest.json"
    manifest = json.loads(path.read_text())
    other = manifest["config"] | {"model": manifest["config"]["model"] | {"layers": 5}}
    path.write_text(json.dumps(manifest | {"config": other}))
    with pytest.raises(
        ValueError, match=rf"checkpoint-{STEPS:08d} exists with another config \(model\.layers was 5, now 2"
    ):
        train(config)
    (run / "checkpoint_manager_snapshot.json").write_text("{}")
    with pytest.raises(ValueError, match="was begun by an earlier version"):
        train(config)
    (run / "checkpoint_manager_snapshot.json").unlink()
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version reads up to 1: go on with the version"):
        train(config)


@pytest.mark.soak
@pytest.mark.cluster
def test_a_checkpoint_of_another_model_stops_a_run(whole_run, shards, tmp_path):
    storage, _ = whole_run
    shutil.copytree(storage / "whole", tmp_path / "run")
    path = tmp_path / "run" / f"checkpoint-{STEPS:08d}" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"parameters": 7}))
    with pytest.raises(RuntimeError, match=r"is of a model of 7 parameters, this one has [\d,]+"):
        train(config_of(shards, tmp_path, "run", scale={"ranks": 1}, steps=STEPS + 1))


@pytest.mark.cluster
def test_too_many_lost_steps_stop_a_run(ray_cluster, shards, tmp_path):
    # At this learning rate all gradients overflow.
    hot = {"learning_rate": 1e30, "clip_norm": 1e30, "max_skipped_steps": 3}
    config = config_of(shards, tmp_path, "hot", scale={"ranks": 1}, **hot)
    with pytest.raises(
        RuntimeError, match=r"4 steps had a gradient that is not finite.*max_skipped_steps \(3\)"
    ):
        train(config)
    lost = rows(tmp_path, "hot")
    assert lost[-1]["skipped"] == 4
    assert [r["step"] for r in lost] == list(range(1, len(lost) + 1))


# This is a soak test because Ray Train waits long for a rank that hangs. test_health.py tests the same without Ray
# Train.
@pytest.mark.soak
@pytest.mark.cluster
def test_a_rank_that_hangs_is_named_and_no_row_is_lost(ray_cluster, shards, tmp_path):
    config = config_of(shards, tmp_path, "hung", steps=4000, checkpoint_every=2, evaluate_every=0)
    config = replace(config, scale=replace(config.scale, collective_timeout_s=5))

    def stop_one() -> None:
        while len(rows(tmp_path, "hung")) < 6:
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                    # The suspended process hangs, but Ray sees nothing wrong with it.
                    process.suspend()
                    return

    stopping = threading.Thread(target=stop_one, daemon=True)
    stopping.start()
    named = r"CollectiveTimeout: rank [01] waited 5 s \(scale\.collective_timeout_s\) in step \d+; missing: rank [01]"
    with pytest.raises(RuntimeError, match=named):
        train(config)
    stopping.join()
    got = rows(tmp_path, "hung")
    assert [r["step"] for r in got] == list(range(1, len(got) + 1))
    assert Checkpoints(RunFolder(str(tmp_path), "hung")).complete()[0].step >= 4


def test_unusable_folders_are_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(config_of(str(tmp_path / "nowhere"), tmp_path, "x"))
    # Nobody can write to /proc.
    with pytest.raises(OSError, match=r"/proc/runs"):
        train(config_of(shards, Path("/proc/runs"), "x"))
    config = config_of(shards, tmp_path, "x")
    config = replace(config, model=replace(config.model, backbone=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"no backbone in .*config\.json is missing"):
        train(config)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ScaleConfig(ranks=0), "ranks must be >= 1, got 0"),
        (lambda: TrainConfig(learning_rate=0), "learning_rate must be > 0, got 0"),
        (lambda: LatentDataConfig(max_bad_fraction=2), r"max_bad_fraction must be within 0\.\.1, got 2"),
        (lambda: MotionConfig(heads=5), "heads must divide hidden"),
        (lambda: MotionConfig(context_frames=100), "multiple of chunk_frames.*got 100"),
        (lambda: ScaleConfig(ranks=2, min_ranks=3), r"min_ranks must be in 1\.\.ranks \(2\), got 3"),
        (lambda: TrainConfig(max_skipped_steps=-1), "max_skipped_steps must be >= 0, got -1"),
        (lambda: TrainConfig(loss_spike=0), "loss_spike must be > 0, got 0"),
        *(
            (lambda name=name: RunConfig(name=name), rf"plain folder name.*, got '{re.escape(name)}'")
            for name in ("a/b", "a#b", "a%20b", "a?b", "a b", ".a", "-a", "", "läuft", "a" * 201)
        ),
        (lambda: Stage2Config(scale=ScaleConfig(ranks=3)), "one of 1, 2, 4, 8, 16; got 3"),
        (
            lambda: Stage2Config(train=TrainConfig(budget_frames=100)),
            r"budget_frames must be >= .*128.*got 100",
        ),
    ],
)
def test_a_config_that_cannot_work_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("preset", [tiny, small, paper_7b])
def test_presets_survive_json(preset):
    config = preset()
    saved = json.loads(json.dumps(asdict(config)))
    assert Stage2Config.from_dict(saved) == config
    with pytest.raises(ValueError, match="another version.*colour"):
        Stage2Config.from_dict({**saved, "train": {**saved["train"], "colour": 1}})


def test_the_paper_preset_has_the_papers_figures():
    config = paper_7b()
    assert (config.train.steps, config.train.learning_rate, config.scale.ranks) == (66_000, 1e-4, 16)
    assert (config.model.chunk_frames, config.model.context_frames, config.forcing.audio_drop) == (
        64,
        512,
        0.1,
    )


def test_a_run_accepts_only_changes_of_some_settings():
    config = tiny()
    before = as_dict(config)
    refuse_changes(before, replace(config, scale=replace(config.scale, ranks=1)), "runs/x")
    refuse_changes(before, replace(config, train=replace(config.train, steps=9)), "runs/x")
    refuse_changes(before, replace(config, data=replace(config.data, shards="moved")), "runs/x")
    other = replace(config, data=replace(config.data, max_bad_fraction=0.3))
    with pytest.raises(ValueError, match=r"data\.max_bad_fraction was .* now 0\.3"):
        refuse_changes(before, other, "runs/x")
    # An earlier version did not know this option.
    del before["model"]["attention"]
    refuse_changes(before, config, "runs/x")
    causal = replace(config, model=replace(config.model, attention="causal"))
    with pytest.raises(ValueError, match=r"model\.attention was 'chunk', now 'causal'"):
        refuse_changes(before, causal, "runs/x")


def test_the_learning_rate_warms_up_and_falls():
    train = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(step, train) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert learning_rate(99, replace(train, schedule="constant")) == 1.0


def test_a_log_continues_after_a_truncated_line(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    log = RunLog(folder, "metrics.jsonl")
    log.write({"step": 1})
    log.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    log = RunLog(folder, "metrics.jsonl")
    log.write({"step": 2})
    log.close()
    assert folder.read_lines("metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_an_export_replaces_all_files_of_the_earlier_one(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    for text in ("old", "new"):
        source = tmp_path / text
        (source / "motion").mkdir(parents=True)
        (source / "motion" / f"{text}.txt").write_text(text)
        folder.upload_folder(source, "export")
    assert [p.name for p in (tmp_path / "run").rglob("*.txt")] == ["new.txt"]
    assert not list((tmp_path / "run").glob("*.partial"))


def test_numbers_that_are_not_finite_are_named_in_a_log(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    log = RunLog(folder, "metrics.jsonl")
    wrote = {"step": 1, "loss": float("nan"), "grad_norm": float("-inf"), "lr": 0.5, "mfu": None}
    log.write(wrote)
    log.close()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": "NaN", "grad_norm": "-Infinity", "lr": 0.5, "mfu": null}\n'
    (row,) = folder.read_lines("metrics.jsonl")
    assert np.isnan(row.pop("loss"))
    assert row == {name: value for name, value in wrote.items() if name != "loss"}
