"""Test that the reports on a motion model recognise an untrained model and drift, and need held-out clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xactor.controls import CONTROL_COUNT, INDEX, embed_controls
from xactor.motion import MotionScheduler, SamplingConfig, load_motion_model
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.evaluation.drift import measure_drift
from xactor_platform.evaluation.few_steps import compare_steps, table
from xactor_platform.evaluation.motion_report import correlation, read_clip, report_motion
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2_config import MotionConfig


def write_clips(
    folder: str, split: str, frames: int = 90, *, encoder: bool = False, truth: bool = False, **origins: str
) -> None:
    """Write one clip with latents of the fixed embedding, or with latents like an encoder's."""
    generator = np.random.default_rng(0)
    with ShardWriter(folder, split) as writer:
        controls = np.zeros((frames, CONTROL_COUNT), np.float32)
        controls[:, INDEX["jawOpen"]] = 0.5 + 0.5 * np.sin(np.arange(frames))
        audio = generator.standard_normal((frames, 1, 6)).astype(np.float16)
        motion = embed_controls(controls)
        # An encoder's latents have another mean and scale, and noise that does not depend on the lips.
        if encoder:
            motion = (
                0.2 * motion
                + generator.standard_normal(motion.shape[1])
                + 0.01 * generator.standard_normal(motion.shape)
            )
        meta = {"frames": frames, "fps": 25, "speaker": "s", "motion": "encoder" if encoder else "controls"}
        meta |= origins
        members = {"motion.npy": motion.astype(np.float16), "audio.npy": audio, "json": meta}
        writer.write(f"{split}-0", {**members, "controls.npy": controls} if truth else members)


def write_untrained(run: Path, shards: str, **origins: str) -> None:
    shape = load_index(shards).frame_shape
    sizes = MotionConfig(hidden=32, layers=1, heads=2, kv_heads=1, mlp=32, chunk_frames=16, context_frames=32)
    model = build_model(sizes, shape, seed=0)
    model.config.update(origins)
    model.save_pretrained(run / "export" / "motion")
    MotionScheduler().save_pretrained(run / "export" / "motion_scheduler")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.9}\n')


def test_an_untrained_model_does_not_follow_the_truth(tmp_path):
    shards = str(tmp_path / "shards")
    write_clips(shards, "test")
    write_untrained(tmp_path / "run", shards)
    report = report_motion(str(tmp_path / "run"), shards, tmp_path / "report", config=SamplingConfig(steps=2))
    assert abs(report.with_cfg) < 0.4
    assert report.readable == pytest.approx(1)
    assert (report.clips, report.frames, len(report.quarters)) == (1, 90, 4)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["rollout_s"] == pytest.approx(3.6)
    for name in ("loss.png", "lips.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.width > 400
    assert "audio CFG 3" in report.table()


@pytest.mark.parametrize("kind", ["latent_origin", "audio_origin"])
def test_a_model_of_other_latents_or_features_than_the_shards_is_refused(tmp_path, kind):
    shards, run = str(tmp_path / "shards"), tmp_path / "run"
    origins = {"latent_origin": "controls-1", "audio_origin": "log-mel-1-0"}
    write_clips(shards, "test", **origins)
    write_untrained(run, shards, **{**origins, kind: "other-1"})
    message = f"{run}/export/motion works with those of other-1, {shards} with those of {origins[kind]}"
    with pytest.raises(ValueError, match=message):
        report_motion(str(run), shards, tmp_path / "report")
    with pytest.raises(ValueError, match=message):
        measure_drift(str(run), shards, tmp_path / "report", minutes=1)
    with pytest.raises(ValueError, match=message):
        compare_steps(str(run), shards, tmp_path / "report", ways=[(2, 1)])


def test_lips_are_not_read_off_latents_of_another_origin(tmp_path):
    shards = str(tmp_path / "shards")
    write_clips(shards, "test", latent_origin="controls-0")
    write_untrained(tmp_path / "run", shards)
    with pytest.raises(ValueError, match="lip opening needs the fixed embedding's latents"):
        report_motion(str(tmp_path / "run"), shards, tmp_path / "report")


def test_an_encoders_latents_are_read_by_a_map_fitted_on_training_clips(tmp_path):
    shards = str(tmp_path / "shards")
    write_clips(shards, "train", encoder=True, truth=True)
    write_clips(shards, "test", encoder=True, truth=True)
    write_untrained(tmp_path / "run", shards)
    report = report_motion(str(tmp_path / "run"), shards, tmp_path / "report", config=SamplingConfig(steps=2))
    assert report.readable > 0.95
    assert abs(report.with_cfg) < 0.4


@pytest.mark.parametrize("truth", [False, True])
def test_latents_whose_lip_opening_is_unknown_are_refused(tmp_path, truth):
    shards = str(tmp_path / "shards")
    write_clips(shards, "test", encoder=True, truth=truth)
    write_untrained(tmp_path / "run", shards)
    message = "no training shards" if truth else "controls.npy next to others"
    with pytest.raises(ValueError, match=message):
        report_motion(str(tmp_path / "run"), shards, tmp_path / "report")


def test_the_report_needs_held_out_clips(tmp_path):
    write_clips(str(tmp_path), "train")
    with pytest.raises(ValueError, match="no held-out shards"):
        report_motion("run", str(tmp_path), tmp_path / "report")


def test_a_long_rollout_is_reported_by_round(tmp_path):
    shards = str(tmp_path / "shards")
    # The clip has 3.6 s.
    write_clips(shards, "test")
    write_untrained(tmp_path / "run", shards)
    run, few = str(tmp_path / "run"), SamplingConfig(steps=2)
    drift = measure_drift(run, shards, tmp_path / "report", minutes=0.17, config=few)
    assert drift.seconds == pytest.approx(3 * 3.6)
    assert [len(values) for values in (drift.lips, drift.off, drift.rms)] == [3, 3, 3]
    # The model is untrained.
    assert max(map(abs, drift.lips)) < 0.5
    assert json.loads((tmp_path / "report" / "drift.json").read_text())["rms"] == drift.rms
    assert (tmp_path / "report" / "drift.png").stat().st_size > 5000
    assert "3 rounds of the same 4 s" in drift.table()
    with pytest.raises(ValueError, match=r"minutes must be more than 0\.06, one round's, got 0\.05"):
        measure_drift(run, shards, tmp_path / "report", minutes=0.05, config=few)


def test_fewer_steps_are_compared_with_the_first_way(tmp_path):
    shards = str(tmp_path / "shards")
    write_clips(shards, "test")
    write_untrained(tmp_path / "run", shards)
    folder = tmp_path / "run" / "export"
    model = load_motion_model(folder)
    # An untrained model outputs zeros, so all ways would be alike.
    torch.nn.init.normal_(model.latent_out.weight, std=0.1)
    model.save_pretrained(folder / "motion")
    ways = compare_steps(
        str(tmp_path / "run"), shards, tmp_path / "report", ways=((4, 1), (4, 1), (2, 1), (4, 2))
    )
    first, again, fewer, pipelined = ways
    assert first.apart == 0
    assert again.apart == 0
    assert fewer.apart > 0
    assert pipelined.apart > 0
    assert all(way.real_time > 0 and abs(way.lips) < 0.5 for way in ways)
    written = json.loads((tmp_path / "report" / "few_steps.json").read_text())
    assert [(row["steps"], row["groups"]) for row in written] == [(4, 1), (4, 1), (2, 1), (4, 2)]
    assert len(table(ways).splitlines()) == 2 + len(ways)
    write_clips(str(tmp_path / "none"), "train")
    with pytest.raises(ValueError, match="no held-out shards"):
        compare_steps("run", str(tmp_path / "none"), tmp_path)


def test_drift_is_measured(tmp_path, monkeypatch):
    """Replace the rollout by the truth, with a mean that moves by a deviation each round and a motion that shrinks."""
    shards = str(tmp_path / "shards")
    write_clips(shards, "test")
    write_untrained(tmp_path / "run", shards)
    truth, _ = read_clip(load_index(shards).held_out(), 0)
    rounds = [(truth - truth.mean(0)) / (n + 1) + truth.mean(0) + n * truth.std(0) for n in range(3)]
    made = [torch.from_numpy(np.concatenate(rounds).astype(np.float32))]
    monkeypatch.setattr("xactor_platform.evaluation.drift.stream_motion", lambda *_, **__: iter(made))
    drift = measure_drift(str(tmp_path / "run"), shards, tmp_path / "report", minutes=0.17)
    assert drift.off == pytest.approx([0, 1, 2], abs=1e-3)
    assert drift.rms == pytest.approx([1, 1 / 2, 1 / 3], abs=1e-3)
    assert drift.lips[0] == pytest.approx(1)


def test_correlation_is_pearsons_coefficient():
    a = np.sin(np.arange(50.0))
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, np.zeros(50)) == 0
