"""Test that a small SyncNet learns, is reproducible and is saved, and that the report recognises an untrained one."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xactor.media import write_video
from xactor.metrics.sync import cepstra_windows, frames_to_model, sync
from xactor.metrics.syncnet import SyncNet, SyncNetConfig
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.evaluation.sync_report import auc, report_sync
from xactor_platform.evaluation.syncnet_training import (
    Clip,
    SyncNetTraining,
    contrastive_loss,
    draw_batch,
    read_clips,
    train_syncnet,
)

TINY = SyncNetConfig(
    image_size=64,
    mouth_px=32,
    stem_stride=1,
    lip_channels=(4, 8, 8, 8, 8, 16),
    audio_channels=(4, 8, 8, 8, 8, 16),
    embedding=8,
)


def talking(frames: int, seed: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark mouth that is as open as the noise is loud: uint8 [frames, side, side, 3], float32 [640 frames]."""
    generator = np.random.default_rng(seed)
    level = np.repeat(generator.uniform(0, 1, math.ceil(frames / 3)), 3)[:frames]
    y, x = np.mgrid[:side, :side] / side
    opening = 0.02 + 0.14 * level[:, None, None]
    mouth = (np.abs(y - 0.56) < opening) & (np.abs(x - 0.5) < 0.2)  # [frames, side, side]
    skin = generator.integers(120, 240, 3)
    pictures = np.where(mouth[..., None], 30, skin).astype(np.uint8)
    loudness = np.repeat(0.003 * 100**level, 640)
    return pictures, (loudness * generator.standard_normal(640 * frames)).astype(np.float32)


def talking_clip(frames: int, seed: int, side: int = 68) -> Clip:
    pictures, samples = talking(frames, seed, side)
    cepstra = cepstra_windows(samples, 0, frames - 5)
    return Clip(key=f"k{seed}", source="demo", crops=pictures, samples=samples, cepstra=cepstra)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> str:
    """Write video shards of three clips; the last one is held out."""
    scratch = tmp_path_factory.mktemp("clips")
    folder = str(tmp_path_factory.mktemp("corpus") / "videos")
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        with ShardWriter(folder, split) as writer:
            for seed in seeds:
                pictures, samples = talking(40 + 10 * seed, seed)
                write_video(scratch / "a.mp4", pictures, samples=samples)
                meta = {"frames": len(pictures), "fps": 25, "speaker": "s", "source": "demo"}
                writer.write(f"{split}-{seed}", {"mp4": (scratch / "a.mp4").read_bytes(), "json": meta})
    return folder


def config(output: Path, **changes) -> SyncNetTraining:
    given = {"output": output, "model": TINY, "steps": 40, "runs": 2, "run_windows": 16, "threads": 1}
    return SyncNetTraining(**{**given, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[SyncNetTraining, SyncNet, list[Clip]]:
    # After 120 steps the model only begins to learn, and CPUs differ. After 250 steps it has learned on all of them.
    made = config(tmp_path_factory.mktemp("model"), steps=250)
    clips = [talking_clip(150, seed) for seed in range(3)]
    return made, train_syncnet(made, clips), clips


def test_the_loss_falls_and_the_model_finds_shifted_sound(trained):
    made, model, _ = trained
    losses = [json.loads(line)["loss"] for line in (made.output / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 250
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    unseen = talking_clip(120, seed=9, side=64)
    samples = unseen.samples
    assert abs(sync(model, unseen.crops, samples).offset_frames) <= 1
    # Five frames of silence at the beginning make the sound late.
    late = np.concatenate([np.full(5 * 640, 1e-4, np.float32), samples])
    assert abs(sync(model, unseen.crops, late).offset_frames + 5) <= 1


def test_a_saved_model_scores_the_same(trained):
    made, model, _ = trained
    loaded = SyncNet.from_pretrained(made.output)
    assert model.weights == "small, trained on the demo corpus"
    assert loaded.weights == model.weights
    pictures, samples = talking(40, seed=5)
    assert sync(loaded, pictures, samples) == sync(model, pictures, samples)
    assert torch.equal(
        loaded.see(frames_to_model(pictures[:9])[None]), model.see(frames_to_model(pictures[:9])[None])
    )


def test_the_same_seed_gives_the_same_model(tmp_path):
    clips = [talking_clip(60, seed) for seed in range(2)]
    a, b, other = (
        train_syncnet(config(tmp_path / name, steps=3, seed=seed), clips)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not torch.equal(a.netfclip[3].weight, other.netfclip[3].weight)


def test_all_frames_of_a_run_are_augmented_alike(tmp_path):
    still = talking_clip(60, seed=0)
    still = replace(still, crops=np.repeat(still.crops[:1], 60, axis=0))
    frames, cepstra = draw_batch([still], config(tmp_path), step=0)
    assert frames.shape == (2, 3, 20, 64, 64)
    assert cepstra.shape == (2, 16, 13, 20)
    assert torch.equal(frames, frames[:, :, :1].expand_as(frames))
    assert not torch.equal(frames[0, :, 0], frames[1, :, 0])
    again, _ = draw_batch([still], config(tmp_path), step=0)
    assert torch.equal(frames, again)
    assert frames.min() >= 0
    assert frames.max() <= 255


def test_the_loss_is_equation_1_over_all_pairs_of_a_run():
    generator = torch.Generator().manual_seed(0)
    seen, heard = torch.randn(2, 2, 6, 3, generator=generator)
    near, far = [], []
    for run in range(2):
        for i in range(6):
            for j in range(6):
                distance = (seen[run, i] - heard[run, j]).norm().item()
                if i == j:
                    near.append(distance**2)
                elif abs(i - j) >= 2:
                    far.append(max(3.0 - distance, 0) ** 2)
    wanted = (np.mean(near) + np.mean(far)) / 4
    assert contrastive_loss(seen, heard, margin=3.0, min_shift=2).item() == pytest.approx(wanted, rel=1e-4)


def test_clips_are_read_from_shards_with_syncnets_crop(videos):
    index = load_index(videos)
    clips = read_clips(index.training(), 68)
    assert [(clip.key, len(clip.crops), clip.windows) for clip in clips] == [
        ("train-0", 40, 35),
        ("train-1", 50, 45),
    ]
    assert clips[0].crops.shape == (40, 68, 68, 3)
    assert clips[0].samples.shape == (40 * 640,)
    assert [clip.key for clip in read_clips(index.held_out(), 64)] == ["test-2"]
    assert len(read_clips(index.training(), 68, minutes=0.02)) == 1
    with pytest.raises(ValueError, match="no clip of >= 51 frames"):
        read_clips(index.training(), 68, min_frames=51)


def test_weights_from_other_clips_are_not_named_after_the_demo(tmp_path):
    clips = [replace(talking_clip(60, 0), source="interview.mov")]
    model = train_syncnet(config(tmp_path, steps=1), clips)
    assert model.weights == "small, trained on 1 clips of another corpus"


def test_the_report_recognises_an_untrained_model(tmp_path, trained):
    clips = [talking_clip(240, seed, side=64) for seed in (20, 21)]
    torch.manual_seed(0)
    untrained_report = report_sync(SyncNet(TINY).eval(), clips)
    trained_report = report_sync(trained[1], clips, tmp_path)
    assert (trained_report.clips, trained_report.pieces, trained_report.windows) == (2, 4, 470)
    assert untrained_report.auc_windows == pytest.approx(0.5, abs=0.05)
    assert trained_report.auc_windows > 0.8
    assert trained_report.found == 1
    assert trained_report.confidence_true > trained_report.confidence_swapped
    assert json.loads((tmp_path / "sync.json").read_text())["found"] == 1
    with Image.open(tmp_path / "sync.png") as plot:
        assert plot.width > 500
    with pytest.raises(ValueError, match=r"held-out clips of >= 120 frames must be >= 2, got 1"):
        report_sync(trained[1], clips[:1])


def test_the_area_under_the_curve_counts_pairs():
    less, more = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 4.0])
    pairs = [(a < b) + 0.5 * (a == b) for a in less for b in more]
    assert auc(less, more) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"margin": 0.0}, "margin must be > 0, got 0"),
        ({"run_windows": 2}, "run_windows must be >= 3, got 2"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        config(tmp_path, **changes)
