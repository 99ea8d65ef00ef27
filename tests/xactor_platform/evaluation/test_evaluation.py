"""Test that the evaluation pairs clips, scores ready videos once, names failures and writes Table 1's columns."""

import json
from pathlib import Path

import numpy as np
import pytest

from xactor.controls import CONTROL_COUNT, INDEX
from xactor.media import read_audio, read_frames, write_video
from xactor.metrics.syncnet import SyncNet, small_config
from xactor.portrait import find_portrait
from xactor_platform.demo_corpus.identity import held_out_identities, render_frame
from xactor_platform.evaluation.judge import Weights
from xactor_platform.evaluation.pairs import cross_driven, self_driven
from xactor_platform.evaluation.report import table, write_report
from xactor_platform.evaluation.scoring import Source, evaluate

FRAMES = 30


def make_clip(path: Path, person: int, motion: float) -> Path:
    """Write a talking clip of 1.2 s whose mouth opens and whose head turns in proportion to `motion`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    controls = np.zeros((FRAMES, CONTROL_COUNT), dtype=np.float32)
    wave = np.sin(np.arange(FRAMES) / 3)
    controls[:, INDEX["jawOpen"]] = 0.4 * (1 + wave)
    controls[:, INDEX["headYaw"]] = motion * wave
    identity = held_out_identities()[person]
    frames = (render_frame(identity, row, 256) for row in controls)
    samples = 0.2 * np.random.default_rng(person).standard_normal(FRAMES * 640).astype(np.float32)
    write_video(path, frames, fps=25, samples=samples)
    return path


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory) -> Path:
    """Make two actors with two clips each, in RAVDESS's layout, and files that do not count."""
    folder = tmp_path_factory.mktemp("ravdess")
    for actor in (1, 2):
        for take in (1, 2):
            name = f"Actor_0{actor}/01-01-03-01-01-0{take}-0{actor}.mp4"
            make_clip(folder / name, actor - 1, 0.1 * take)
        (folder / f"Actor_0{actor}/02-01-03-01-01-01-0{actor}.mp4").write_bytes(b"video only")
    return folder


def test_pairs_speak_another_clip_of_the_same_actor(ravdess):
    pairs = self_driven(ravdess, pairs=9, seed=3)
    assert len({pair.id for pair in pairs}) == 9
    for pair in pairs:
        assert pair.portrait.parent == pair.audio.parent
        assert pair.portrait != pair.audio
        assert pair.audio == pair.truth
        assert pair.position is not None
        assert 0 <= pair.position < 1
    # Every clip is spoken once before one is spoken again.
    assert len({pair.audio for pair in pairs[:4]}) == 4
    assert pairs == self_driven(ravdess, pairs=9, seed=3)
    assert pairs != self_driven(ravdess, pairs=9, seed=4)


def test_pictures_and_sounds_are_matched_once(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp", "notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    for name in ("x.wav", "y.mp3"):
        (tmp_path / "audios" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "audios" / name).touch()
    pairs = cross_driven(tmp_path / "images", tmp_path / "audios", seed=0)
    assert len(pairs) == 2
    assert len({p.portrait for p in pairs}) == 2
    assert len({p.audio for p in pairs}) == 2
    with pytest.raises(ValueError, match="no such folder"):
        cross_driven(tmp_path / "images", tmp_path / "nowhere", seed=0)
    with pytest.raises(ValueError, match=r"no file that ends in \.jpg"):
        cross_driven(tmp_path / "audios", tmp_path / "audios", seed=0)
    with pytest.raises(ValueError, match="no actor with two clips"):
        self_driven(tmp_path, pairs=2, seed=0)
    with pytest.raises(ValueError, match="pairs must be >= 1, got 0"):
        self_driven(tmp_path, pairs=0, seed=0)


def test_ready_videos_are_scored_once_and_failures_are_named(ray_cluster, ravdess, tmp_path):
    pairs = self_driven(ravdess, pairs=3, seed=0)
    ready, output = tmp_path / "ready", tmp_path / "out"
    ready.mkdir()
    # The first two videos are the truth itself, as a perfect model would make them. The third video is missing.
    for pair in pairs[:2]:
        assert pair.truth is not None
        box = find_portrait(next(read_frames(pair.truth))).box
        frames = (box.cut(frame, 256) for frame in read_frames(pair.truth))
        write_video(ready / f"{pair.id}.mp4", frames, fps=25, samples=read_audio(pair.truth))
    SyncNet(small_config()).save_pretrained(tmp_path / "syncnet")
    weights = Weights(syncnet=tmp_path / "syncnet")
    lines: list[str] = []

    def run():
        lines.clear()
        options = {"actors": 2, "gpus_per_actor": 0, "progress": lines.append}
        return evaluate(pairs, Source(videos=ready), weights, output, **options)

    results, used, totals = run()
    assert [result.error is None for result in results] == [True, True, False]
    assert f"{pairs[2].id}.mp4: no such file" in str(results[2].error)
    assert "random" in used["SynC, SynD"]
    assert not totals
    for result in results[:2]:
        # The generated video is the true one, encoded a second time.
        assert result.scores["DGlo"] < 0.2 * result.scores["Glo"]
        assert result.scores["DExp"] < 0.2 * result.scores["Exp"]
        assert abs(result.scores["length_s"]) < 0.07
        assert result.scores["SynC"] >= 0
    text = write_report("self-driven", pairs, results, used, totals, ready, output, facts={}, votes={})
    assert "| this | " in text
    assert "2 of 3 videos" in text
    assert "not of the published SyncNet" in text
    report = json.loads((output / "report.json").read_text())
    assert report["means"]["Glo"] == pytest.approx(np.mean([r.scores["Glo"] for r in results[:2]]))
    assert (output / "frames.png").exists()
    # The next run scores only the third video, which exists now.
    make_clip(ready / f"{pairs[2].id}.mp4", 0, 0.2)
    results, *_ = run()
    assert lines[0] == "3 pairs, 2 are already scored"
    assert all(result.error is None for result in results)
    assert not list(output.rglob(".*"))


def test_the_table_has_the_papers_columns_and_marks_those_not_measured():
    text = table("cross-driven", {"Glo": 0.5, "SynC": 3.25}, {}, ["a note"], {"VQ": 0.4})
    head, _, ours, paper, *_ = text.splitlines()
    assert head.split("|")[2:10] == [
        " SynC ↑ ",
        " SynD ↓ ",
        " Glo ↑ ",
        " Exp ↑ ",
        " Syn ↑ ",
        " Div ↑ ",
        " Emo ↑ ",
        " VQ ↑ ",
    ]
    assert ours.split("|")[2:10] == [" 3.25 ", " - ", " 0.5 ", " - ", " - ", " - ", " - ", " 0.4 "]
    assert paper.split("|")[2:6] == [" 5.63 ", " 8.72 ", " 0.144 ", " 0.034 "]
    assert text.rstrip().endswith("- a note")


def test_a_source_is_either_a_model_or_videos():
    for given in ({}, {"model": Path("a"), "videos": Path("b")}):
        with pytest.raises(ValueError, match="either a model or a folder of videos"):
            Source(**given)
