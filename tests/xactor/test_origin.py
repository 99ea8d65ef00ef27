"""Test that parts of a model that work with different latents or features are refused, and that both are named."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from motion_models import small_model
from test_audio import tiny_wav2vec2

from xactor.audio.encoder import LogMelEncoder, Wav2Vec2Encoder, load_audio_encoder
from xactor.audio.windows import WindowSpec
from xactor.cli import main
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.model_folder import BOX, COMPONENTS, RENDERER_COMPONENTS, check_origins, located
from xactor.origin import LATENTS, Origin, check_fit, digest_origin
from xactor.pipeline import XActorPipeline
from xactor.render import MotionEncoder, Renderer

OWN = "motion-encoder-0123456789abcdef"
LOG_MEL = LogMelEncoder(mels=16).origin


def record(folder: Path, component: str, **origins: str | None) -> None:
    """Write origins into the config of a component; None removes one."""
    file = folder / component / "config.json"
    config = {**json.loads(file.read_text()), **origins}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.fixture
def exports(model_folder, tmp_path) -> tuple[Path, Path]:
    """Return exports of both stages whose origins are those of control tracks and of log-mel energies."""
    folders = tmp_path / "stage1", tmp_path / "stage2"
    for component in COMPONENTS:
        target = folders[component not in RENDERER_COMPONENTS] / component
        shutil.copytree(model_folder / component, target)
    for component in ("motion_encoder", "unet"):
        record(folders[0], component, latent_origin=CONTROLS_ORIGIN)
    record(folders[1], "motion", latent_origin=CONTROLS_ORIGIN, audio_origin=LOG_MEL)
    return folders


def assemble(exports: tuple[Path, Path], output: Path, *options: str) -> int | str | None:
    stages = ["--stage1", str(exports[0]), "--stage2", str(exports[1]), "--output", str(output)]
    with pytest.raises(SystemExit) as exit_:
        main(["assemble", *stages, *options])
    return exit_.value.code


def test_a_digest_depends_on_names_and_values_but_not_on_files_and_their_types(tmp_path):
    torch.manual_seed(0)
    encoder = MotionEncoder(image_size=64, channels=(8, 8, 16), latent_dim=32)
    origin = encoder.own_origin()
    assert re.fullmatch("motion-encoder-[0-9a-f]{16}", origin)
    for name, options in (
        ("whole", {}),
        ("pieces", {"max_shard_size": "20KB"}),
        ("pickled", {"safe_serialization": False}),
    ):
        encoder.save_pretrained(tmp_path / name, **options)
        loaded = MotionEncoder.from_pretrained(tmp_path / name, low_cpu_mem_usage=False)
        assert loaded.latent_origin == origin
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    encoder.half().save_pretrained(tmp_path / "half")
    assert MotionEncoder.from_pretrained(tmp_path / "half", low_cpu_mem_usage=False).latent_origin == origin
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    same = digest_origin("x", {}, dict(reversed(weights.items())))
    assert digest_origin("x", {}, weights) == same
    others = [
        digest_origin("x", {}, {"a": torch.ones(3, 2), "b": torch.zeros(1)}),
        digest_origin("x", {}, {"a": torch.ones(2, 3), "c": torch.zeros(1)}),
        digest_origin("x", {}, {"a": torch.ones(2, 3), "b": torch.full((1,), 0.01)}),
        digest_origin("x", {"layers": [1]}, weights),
    ]
    assert len({same, *others}) == 5


def test_log_mel_features_have_the_origin_of_their_options(tmp_path):
    assert LogMelEncoder(mels=16, windows=WindowSpec(floor_db=-40)).origin == LOG_MEL
    others = [LogMelEncoder(), LogMelEncoder(mels=16, windows=WindowSpec(hop_frames=8))]
    assert len({LOG_MEL, *(encoder.origin for encoder in others)}) == 3
    others[1].save_pretrained(tmp_path)
    assert load_audio_encoder(tmp_path).origin == others[1].origin


def test_wav2vec2_features_have_the_origin_of_weights_and_layers(tmp_path):
    published, saved = tmp_path / "published", tmp_path / "saved"
    model = tiny_wav2vec2()
    # Published models lack this weight, which only training uses. transformers draws it at random.
    del model.masked_spec_embed
    model.half().save_pretrained(published)
    origins = set()
    for seed in range(2):
        torch.manual_seed(seed)
        origins.add(load_audio_encoder(published).origin)
    (origin,) = origins
    encoder = load_audio_encoder(published)
    encoder.save_pretrained(saved)
    assert json.loads((saved / "preprocessor_config.json").read_text())["audio_origin"] == origin
    assert load_audio_encoder(saved).origin == origin
    assert load_audio_encoder(saved, layers=(1,)).origin != origin
    assert Wav2Vec2Encoder(tiny_wav2vec2(), windows=WindowSpec(left_frames=8)).origin != origin


def test_the_model_in_the_box_fits_and_says_so(caplog):
    pipeline = XActorPipeline.from_pretrained()
    assert not caplog.records
    assert check_origins(dict.fromkeys(COMPONENTS, located(BOX))) == []
    assert pipeline.motion.config.latent_origin == pipeline.unet.config["latent_origin"] == CONTROLS_ORIGIN
    assert pipeline.motion_encoder.latent_origin == CONTROLS_ORIGIN
    assert pipeline.motion.config.audio_origin == pipeline.audio_encoder.origin == LogMelEncoder().origin


def test_a_pair_that_fits_is_assembled_and_keeps_its_origins(exports, tmp_path, capsys, caplog):
    assert assemble(exports, tmp_path / "model", "--dtype", "float16") == 0
    assert not caplog.records
    for component, recorded in (
        ("motion", {"latent_origin": CONTROLS_ORIGIN, "audio_origin": LOG_MEL}),
        ("unet", {"latent_origin": CONTROLS_ORIGIN}),
        ("motion_encoder", {"latent_origin": CONTROLS_ORIGIN}),
    ):
        config = json.loads((tmp_path / "model" / component / "config.json").read_text())
        assert {name: value for name, value in config.items() if name in recorded} == recorded
    XActorPipeline.from_pretrained(tmp_path / "model")
    assert not caplog.records


def test_motion_of_controls_and_a_renderer_of_an_encoders_latents_are_refused(exports, tmp_path, capsys):
    stage1, stage2 = exports
    for component in ("motion_encoder", "unet"):
        record(stage1, component, latent_origin=OWN)
    assert assemble(exports, tmp_path / "model") == 2
    error = capsys.readouterr().err.strip()
    assert error == (
        f"error: motion latents do not fit: {stage2}/motion works with those of {CONTROLS_ORIGIN}, "
        f"{stage1}/motion_encoder with those of {OWN}"
    )
    assert not (tmp_path / "model").exists()


def test_another_audio_encoder_is_refused(exports, tmp_path, capsys):
    LogMelEncoder(mels=16, windows=WindowSpec(hop_frames=8)).save_pretrained(exports[1] / "audio_encoder")
    assert assemble(exports, tmp_path / "model") == 2
    error = capsys.readouterr().err
    other = load_audio_encoder(exports[1] / "audio_encoder").origin
    assert f"audio features do not fit: {exports[1]}/motion works with those of {LOG_MEL}" in error
    assert f"{exports[1]}/audio_encoder with those of {other}" in error


def test_exports_without_origins_get_a_note(exports, tmp_path, caplog):
    stage1, stage2 = exports
    record(stage1, "unet", latent_origin=None)
    record(stage2, "motion", audio_origin=None)
    assert assemble(exports, tmp_path / "model") == 0
    notes = [message for message in caplog.messages if "did not record" in message]
    assert [note.split(": made by a version")[0] for note in notes] == [f"{stage1}/unet", f"{stage2}/motion"]
    assert "the origin of motion latents" in notes[0]
    assert "the origin of audio features" in notes[1]


def test_a_motion_encoder_of_another_renderer_is_refused(exports):
    record(exports[0], "motion_encoder", latent_origin=OWN)
    with pytest.raises(
        ValueError, match=f"motion_encoder works with those of {OWN}, .*unet with those of con"
    ):
        Renderer.from_pretrained(exports[0])


def test_a_loaded_component_that_does_not_fit_is_refused(exports, tmp_path):
    assert assemble(exports, tmp_path / "model") == 0
    motion = small_model(latent_dim=32, audio_layers=1, audio_dim=64, latent_origin=OWN)
    with pytest.raises(
        ValueError, match=f"the MotionTransformer works with those of {OWN}, .*model/motion_enc"
    ):
        XActorPipeline.from_pretrained(tmp_path / "model", motion=motion)
    other = LogMelEncoder(mels=16, windows=WindowSpec(hop_frames=8))
    with pytest.raises(
        ValueError, match=f"model/motion works with those of {LOG_MEL}, the audio encoder with"
    ):
        XActorPipeline.from_pretrained(tmp_path / "model", audio_encoder=other)


def test_only_known_origins_are_compared():
    known, unknown = Origin("a", CONTROLS_ORIGIN), Origin("b", None)
    assert check_fit(LATENTS, known, known) == []
    assert len(check_fit(LATENTS, known, unknown)) == 1
    with pytest.raises(ValueError, match="a works with those of controls-1, c with those of motion-encoder-"):
        check_fit(LATENTS, known, unknown, Origin("c", OWN))
