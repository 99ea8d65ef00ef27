"""Test that table 2 trains the right runs, samples every variant and is written with means and spreads."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xactor.controls import CONTROL_COUNT, INDEX, embed_controls
from xactor.motion import MotionScheduler, SamplingConfig, load_motion_model, sample_motion
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.evaluation.ablation import (
    VARIANTS,
    Score,
    markdown,
    save_report,
    score_variants,
    trainings,
)
from xactor_platform.evaluation.motion_report import read_clip
from xactor_platform.training.command import parse
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2_config import PRESETS, Stage2Config

CONTEXT = 32
FULL = "full model"
SMALL = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "mlp": 32,
    "audio_width": 16,
    "chunk_frames": 16,
}
SEEDS, STEPS = (0, 1), 2


def write_clips(folder: str, lengths: tuple[int, ...]) -> None:
    """Write held-out clips of the fixed embedding's latents, with a mouth that opens and shuts."""
    with ShardWriter(folder, "test") as writer:
        for number, frames in enumerate(lengths):
            controls = np.zeros((frames, CONTROL_COUNT), np.float32)
            controls[:, INDEX["jawOpen"]] = 0.5 + 0.5 * np.sin(np.arange(frames) / (2 + number))
            audio = np.random.default_rng(number).standard_normal((frames, 1, 6)).astype(np.float16)
            meta = {"frames": frames, "fps": 25, "speaker": f"s{number}", "motion": "controls"}
            motion = embed_controls(controls).astype(np.float16)
            writer.write(f"test-{number}", {"motion.npy": motion, "audio.npy": audio, "json": meta})


def configs() -> dict[str, Stage2Config]:
    """Parse the command line of every training of the table."""
    return {name: parse(["tiny", *options], PRESETS) for name, options in trainings(SEEDS).items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make shards of held-out clips, and a small model of random weights for every training."""
    folder = tmp_path_factory.mktemp("ablation")
    shards, runs = str(folder / "shards"), folder / "runs"
    write_clips(shards, (100, 4 * CONTEXT + 3, 20))
    shape = load_index(shards).frame_shape
    for number, (name, config) in enumerate(configs().items()):
        model = build_model(replace(config.model, **SMALL, context_frames=CONTEXT), shape, seed=number)
        # An untrained model outputs zeros, so all variants would be alike.
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        model.save_pretrained(runs / name / "export" / "motion")
        MotionScheduler().save_pretrained(runs / name / "export" / "motion_scheduler")
    return shards, runs


@pytest.fixture(scope="module")
def sampled(trained):
    shards, runs = trained
    lines: list[str] = []
    scores, shown = score_variants(runs, shards, seeds=SEEDS, steps=STEPS, max_clips=2, progress=lines.append)
    return scores, shown, lines


def test_variants_that_differ_only_in_sampling_share_a_training():
    found = configs()
    assert set(found) == {
        f"{name}-{seed}"
        for name in ("full", "attention-causal", "forcing-teacher", "noise-per_chunk")
        for seed in SEEDS
    }
    for name, config in found.items():
        assert config.train.seed == int(name[-1])
        assert (config.model.attention == "causal") == name.startswith("attention-causal")
        assert (config.forcing.forcing == "teacher") == name.startswith("forcing-teacher")
        assert (config.forcing.noise == "per_chunk") == name.startswith("noise-per_chunk")


def test_every_variant_is_sampled_in_its_own_way(sampled):
    scores, shown, lines = sampled
    names = [variant.name for variant in VARIANTS]
    assert list(scores) == names
    assert list(shown) == ["truth", *names]
    assert all(z.shape == (4 * CONTEXT + 3, 512) and np.isfinite(z).all() for z in shown.values())
    for name, other in itertools.combinations(shown, 2):
        assert np.abs(shown[name] - shown[other]).max() > 1e-3, (name, other)
    for rows in scores.values():
        assert len(rows) == len(SEEDS)
        assert rows[0] != rows[1]
        for row in rows:
            assert all(-1 <= lips <= 1 for lips in (row.lips, *row.quarters))
            assert len(row.quarters) == 4
            assert row.error > 0
            assert 0 < row.rms < 100
    assert [line.split(":")[0] for line in lines] == [f"{n}, seed {s}" for s in SEEDS for n in names]


def test_the_full_model_is_sampled_as_in_the_paper(trained, sampled):
    shards, runs = trained
    index = load_index(shards)
    z, audio = read_clip(index, int(index.frames.argmax()))
    _, shown, _ = sampled
    np.testing.assert_array_equal(shown["truth"], z)
    model = load_motion_model(runs / "full-0" / "export")
    config = SamplingConfig(steps=STEPS, audio_cfg=3, history="linear")
    alone = sample_motion(model, audio[None], seeds=[0], config=config)[0]
    np.testing.assert_allclose(shown[FULL], alone.numpy(), atol=2e-4)


def test_clips_must_be_held_out_and_four_contexts_long(trained, tmp_path):
    _, runs = trained
    write_clips(str(tmp_path), (4 * CONTEXT - 1,))
    wanted = {"seeds": (0,), "steps": 1, "max_clips": 1, "progress": print}
    with pytest.raises(ValueError, match=f"four contexts, {4 * CONTEXT} frames, got {4 * CONTEXT - 1}"):
        score_variants(runs, str(tmp_path), **wanted)
    (tmp_path / "test-000000.tar").rename(tmp_path / "train-000000.tar")
    with pytest.raises(ValueError, match="no held-out shards"):
        score_variants(runs, str(tmp_path), **wanted)


def test_the_table_has_means_their_spread_and_the_papers_figures(tmp_path):
    def score(lips: float) -> Score:
        return Score(lips=lips, error=0.5, quarters=(lips, 0.2, 0.3, 0.25), rms=1.5)

    scores = {variant.name: [score(0.4), score(0.6)] for variant in VARIANTS}
    scores["teacher forcing"] = [score(0.3), score(0.5)]
    head, _, *rows = markdown(scores).splitlines()
    assert "paper's SynC ↑ | SynD ↓" in head
    assert len(rows) == 7
    assert rows[-1] == "| full model | 0.500 ± 0.141 | - | 0.500 ± 0.000 | 0.50, 0.25 | 1.50 | 6.62 | 7.18 |"
    # The difference is taken seed by seed, so its deviation is 0.
    assert rows[1].startswith("| teacher forcing | 0.400 ± 0.141 | 0.100 ± 0.000 | 0.500 ± 0.000 |")
    assert rows[0].startswith("| fully causal attention | 0.500 ± 0.141 | 0.000 ± 0.000 |")
    assert markdown({name: some[:1] for name, some in scores.items()}).count("0.400 ± 0.000") == 6
    save_report(tmp_path / "report", scores, {"command": "python jobs/report.py ablation"})
    assert (tmp_path / "report" / "table.md").read_text() == markdown(scores)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["command"] == "python jobs/report.py ablation"
    assert report["scores"][FULL][1]["lips"] == 0.6
