"""Test that a training is refused if its corpus, its audio encoder and the model to start from do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from motion_models import small_model
from render_models import small_components
from test_audio import tiny_wav2vec2

from xactor.audio import WindowSpec
from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.model_folder import check_origins
from xactor.motion import MotionScheduler
from xactor.origin import AUDIO, LATENTS
from xactor.render import Renderer
from xactor_platform.data.fingerprint import fingerprint, refuse_changed_corpus
from xactor_platform.data.index import Index
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.storage.location import Location
from xactor_platform.training.stage1 import Stage1
from xactor_platform.training.stage1_config import RendererConfig, Stage1Config, Stage1TrainConfig
from xactor_platform.training.stage2 import Stage2
from xactor_platform.training.stage2_config import LatentDataConfig, MotionConfig, Stage2Config

ENCODER = LogMelEncoder(mels=16)
OTHER_ENCODER = LogMelEncoder(mels=16, windows=WindowSpec(hop_frames=8))
OWN = "motion-encoder-0123456789abcdef"
RECORDED = {LATENTS: CONTROLS_ORIGIN, AUDIO: ENCODER.origin}
SAVED = {"moments": ([0.0] * 32, [1.0] * 32)}


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Return a function that writes a shard for each dict of entries for its samples' json, and the audio encoder."""

    def write(*shards: dict[str, Any], clips: int = 2) -> str:
        folder = tmp_path / "corpus" / "shards"
        for number, entries in enumerate(shards):
            with ShardWriter(str(folder), f"part{number}", overwrite=True) as writer:
                for clip in range(clips):
                    sample = {
                        "motion.npy": np.ones((40, 32), np.float16),
                        "audio.npy": np.ones((40, 1, 64), np.float16),
                        "json": {"frames": 40, "fps": 25, **entries},
                    }
                    writer.write(f"{number}-{clip}", sample)
        ENCODER.save_pretrained(folder.parent / "audio_encoder")
        return str(folder)

    return write


def stage2(shards: str, start: Path | None = None, **data) -> Stage2Config:
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 48, "audio_width": 16}
    motion = MotionConfig(**sizes, chunk_frames=8, context_frames=32, start=start and str(start))
    return Stage2Config(data=LatentDataConfig(shards=shards, **data), model=motion)


def test_the_origins_reach_the_export_with_the_encoder(write, tmp_path, capsys):
    shards = write(RECORDED)
    index = load_index(shards)
    config = stage2(shards)
    facts = config.prepare(index, None)
    assert "NOTE" not in capsys.readouterr().out
    assert facts == {**facts, **RECORDED, "audio_encoder": str(Path(shards).parent / "audio_encoder")}
    stage = Stage2(config, facts, index, rank=0, ranks=1, device=torch.device("cpu"))
    stage.export(tmp_path / "export")
    recorded = json.loads((tmp_path / "export" / "motion" / "config.json").read_text())
    assert {name: recorded[name] for name in RECORDED} == RECORDED
    assert check_origins(dict.fromkeys(("motion", "audio_encoder"), tmp_path / "export")) == []


def test_an_audio_encoder_in_a_bucket_reaches_the_export(write, bucket, tmp_path):
    shards = write(RECORDED)
    place = Location.parse(bucket.format("audio_encoder"))
    for file in (Path(shards).parent / "audio_encoder").iterdir():
        with place.atomic_write(file.name) as stream:
            stream.write(file.read_bytes())
    config, index = stage2(shards, audio_encoder=place.uri), load_index(shards)
    stage = Stage2(config, config.prepare(index, SAVED), index, rank=0, ranks=1, device=torch.device("cpu"))
    stage.export(tmp_path / "export")
    for file in (Path(shards).parent / "audio_encoder").iterdir():
        assert (tmp_path / "export" / "audio_encoder" / file.name).read_bytes() == file.read_bytes()


def test_a_published_audio_encoder_is_recognised_by_its_weights(write, tmp_path):
    published = tmp_path / "wav2vec2"
    tiny_wav2vec2().save_pretrained(published)
    shards = write({**RECORDED, AUDIO: load_audio_encoder(published).origin})
    config, index = stage2(shards, audio_encoder=str(published)), load_index(shards)
    stage = Stage2(config, config.prepare(index, SAVED), index, rank=0, ranks=1, device=torch.device("cpu"))
    stage.export(tmp_path / "export")
    assert check_origins(dict.fromkeys(("motion", "audio_encoder"), tmp_path / "export")) == []
    exported_encoder = load_audio_encoder(tmp_path / "export" / "audio_encoder")
    assert exported_encoder.origin == index.origin(AUDIO).name
    shards = write(RECORDED)
    with pytest.raises(
        ValueError, match=f"works with those of {ENCODER.origin}, {published} with .* wav2vec2-"
    ):
        stage2(shards, audio_encoder=str(published)).prepare(load_index(shards), SAVED)


@pytest.mark.parametrize("kind", [LATENTS, AUDIO])
def test_a_corpus_of_two_origins_is_refused_with_both_counts(write, kind):
    shards = write(RECORDED, {**RECORDED, kind: "x-1"}, RECORDED)
    message = rf"mixes .* \(4 samples have those of {RECORDED[kind]}, 2 samples have those of x-1\)"
    # The index is read from the shards first, and from its file then.
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            stage2(shards).prepare(load_index(shards), SAVED)


def test_samples_without_origins_get_a_note(write, capsys):
    shards = write(RECORDED, {})
    assert stage2(shards).prepare(load_index(shards), SAVED)[LATENTS] == CONTROLS_ORIGIN
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 2
    for note, words in zip(notes, ("motion latents", "audio features"), strict=True):
        assert f"2 of 4 samples were made by a version that did not record the origin of {words}" in note
    shards = write({}, {})
    facts = stage2(shards).prepare(load_index(shards), SAVED)
    assert facts[LATENTS] is facts[AUDIO] is None
    assert capsys.readouterr().out.count("made by a version that did not record the origin of") == 2


def test_features_of_another_audio_encoder_are_refused(write, tmp_path):
    shards = write({**RECORDED, AUDIO: OTHER_ENCODER.origin})
    message = (
        f"shards works with those of {OTHER_ENCODER.origin}, .*audio_encoder with those of {ENCODER.origin}"
    )
    with pytest.raises(ValueError, match=message):
        stage2(shards).prepare(load_index(shards), None)
    OTHER_ENCODER.save_pretrained(tmp_path / "other")
    stage2(shards, audio_encoder=str(tmp_path / "other")).prepare(load_index(shards), None)


@pytest.mark.parametrize("kind", [LATENTS, AUDIO])
def test_a_motion_model_of_another_origin_is_not_trained_further(write, tmp_path, kind):
    def start(name: str, **origins) -> Path:
        motion = small_model(latent_dim=32, audio_layers=1, audio_dim=64, **origins)
        motion.save_pretrained(tmp_path / name / "motion")
        MotionScheduler().save_pretrained(tmp_path / name / "motion_scheduler")
        return tmp_path / name

    shards = write(RECORDED)
    index = load_index(shards)
    other = start("other", **{**RECORDED, kind: "x-1"})
    with pytest.raises(ValueError, match=f"shards works with .*{RECORDED[kind]}, {other}/motion with .*x-1"):
        stage2(shards, start=other).prepare(index, SAVED)
    stage2(shards, start=start("same", **RECORDED)).prepare(index, SAVED)


def test_a_run_does_not_resume_on_latents_of_another_origin(write):
    before = fingerprint(load_index(write(RECORDED, RECORDED)))
    now = fingerprint(load_index(write(RECORDED, {**RECORDED, LATENTS: OWN})))
    with pytest.raises(ValueError, match=r"shards 1 changed \(part1-000000\.tar\)"):
        refuse_changed_corpus(before, now, "shards")


def stage1(start: Path | None = None, *, guess: bool = True, **train) -> Stage1Config:
    return Stage1Config(
        model=RendererConfig(start=start and str(start), image_size=32, window_frames=4, guess=guess),
        train=Stage1TrainConfig(
            steps=4,
            vae_steps=0 if start else 1,
            **{"motion_steps": 1 if guess else 0, "frames_steps": 1, **train},
        ),
    )


@pytest.fixture
def videos(video_corpus) -> Callable[..., Index]:
    return lambda tracks: load_index(video_corpus([30, 40], tracks=tracks)[0])


def renderer_of(folder: Path, origin: str | None, **options) -> Path:
    components = small_components(**options)
    for model in (components.motion_encoder, components.unet):
        model.register_to_config(latent_origin=origin)
    Renderer(**vars(components)).save_pretrained(folder)
    return folder


def exported(config: Stage1Config, index: Index, folder: Path) -> Renderer:
    """Export an untrained renderer, as at the end of a training."""
    Stage1(config, {}, index, rank=0, ranks=1, device=torch.device("cpu")).export(folder)
    return Renderer.from_pretrained(folder)


def test_a_renderer_taught_by_controls_and_its_encoder_have_the_origin_of_controls(videos, tmp_path):
    parts = exported(stage1(), videos(True), tmp_path).components
    assert parts.unet.config["latent_origin"] == CONTROLS_ORIGIN
    assert parts.motion_encoder.latent_origin == CONTROLS_ORIGIN


@pytest.mark.parametrize(("tracks", "guess"), [(False, True), (True, False)])
def test_a_renderer_taught_by_pictures_has_the_origin_of_its_encoder(videos, tmp_path, tracks, guess):
    parts = exported(stage1(guess=guess), videos(tracks), tmp_path).components
    own = parts.motion_encoder.own_origin()
    assert parts.unet.config["latent_origin"] == parts.motion_encoder.latent_origin == own


def test_only_training_gives_a_motion_encoder_another_origin(videos, tmp_path, capsys):
    start, index = renderer_of(tmp_path / "start", CONTROLS_ORIGIN), videos(False)
    frozen = stage1(start, motion_steps=0, encoder_learning_rate=0.0)
    frozen.prepare(index, {})
    assert "NOTE" not in capsys.readouterr().out
    parts = exported(frozen, index, tmp_path / "frozen").components
    assert parts.unet.config["latent_origin"] == CONTROLS_ORIGIN
    trained = stage1(start)
    trained.prepare(index, {})
    assert "has no control tracks: the motion encoder will make latents of its own" in capsys.readouterr().out
    parts = exported(trained, index, tmp_path / "trained").components
    assert parts.unet.config["latent_origin"] == parts.motion_encoder.own_origin()


def test_a_renderer_of_an_encoders_latents_is_not_trained_further_on_controls(videos, tmp_path, capsys):
    index, start = videos(True), renderer_of(tmp_path / "own", OWN)
    with pytest.raises(ValueError, match=f"own/unet works with those of {OWN}, .* with those of controls-1"):
        stage1(start).prepare(index, {})
    stage1(renderer_of(tmp_path / "controls", CONTROLS_ORIGIN)).prepare(index, {})
    # Without a guess network, control tracks teach nothing.
    stage1(renderer_of(tmp_path / "plain", OWN, guess_channels=None)).prepare(index, {})
    assert "NOTE" not in capsys.readouterr().out
    stage1(renderer_of(tmp_path / "old", None)).prepare(index, {})
    assert "old/unet: made by a version that did not record" in capsys.readouterr().out
