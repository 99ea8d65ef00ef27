"""Test that the audio encoder of a corpus is found, and that a warning names features that are not the paper's."""

from dataclasses import replace

import pytest

from xactor.audio.encoder import LogMelEncoder
from xactor_platform.data.index_file import load_index
from xactor_platform.precompute.encoder_folder import save_encoder
from xactor_platform.storage.location import Location
from xactor_platform.training.latent_corpus import audio_feature_warning, find_audio_encoder
from xactor_platform.training.stage2_config import paper_7b, small, tiny
from xactor_platform.training.train_config import as_dict, refuse_changes


def test_the_audio_encoder_is_found_in_the_shards_folder_and_next_to_it(tmp_path):
    shards = tmp_path / "corpus" / "shards"
    shards.mkdir(parents=True)
    assert find_audio_encoder(str(shards), None) is None
    (shards.parent / "audio_encoder").mkdir()
    assert find_audio_encoder(str(shards), None) == str(shards.parent / "audio_encoder")
    (shards / "audio_encoder").mkdir()
    assert find_audio_encoder(str(shards), None) == str(shards / "audio_encoder")
    assert find_audio_encoder(str(shards), str(tmp_path)) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="no audio encoder in .*nowhere: the folder does not exist"):
        find_audio_encoder(str(shards), str(tmp_path / "nowhere"))


def test_the_audio_encoder_is_found_in_a_bucket_too(bucket, tmp_path):
    shards, encoder = bucket.format("corpus/shards"), bucket.format("corpus/audio_encoder")
    place = Location.parse(shards)
    place.filesystem.create_dir(place.path, recursive=True)
    assert find_audio_encoder(shards, None) is None
    # Nothing lies next to a bucket.
    assert find_audio_encoder(bucket.replace("/{}", ""), None) is None
    LogMelEncoder(mels=16).save_pretrained(tmp_path)
    save_encoder(tmp_path, encoder)
    assert find_audio_encoder(shards, None) == encoder
    assert find_audio_encoder("nowhere", encoder) == encoder
    warning = audio_feature_warning(shards, 1, 64, encoder)
    assert warning is not None
    assert "are log-mel energies" in warning


def test_features_that_are_not_wav2vec2s_are_named_in_one_line(tmp_path):
    log_mel, wav2vec2 = tmp_path / "log-mel", tmp_path / "wav2vec2"
    LogMelEncoder().save_pretrained(log_mel)
    wav2vec2.mkdir()
    (wav2vec2 / "config.json").write_text('{"model_type": "wav2vec2"}')
    unknown = audio_feature_warning("s3://bucket/shards", 1, 160, None)
    assert unknown is not None
    assert "of s3://bucket/shards ([1, 160] per frame) have no audio_encoder/" in unknown
    known = audio_feature_warning("shards", 1, 160, str(log_mel))
    assert known is not None
    assert "are log-mel energies, where the paper has Wav2Vec2's" in known
    for warning in (unknown, known):
        assert "jobs/precompute.py --audio-encoder" in warning
        assert "\n" not in warning
    assert audio_feature_warning("shards", 4, 1024, str(wav2vec2)) is None


@pytest.mark.parametrize("preset", [small, paper_7b])
def test_log_mel_features_are_refused_unless_allowed(shards, tmp_path, capsys, preset):
    """Hours on GPUs, spent on other features than the paper's, must be intended."""
    (tmp_path / "config.json").write_text("{}")
    LogMelEncoder().save_pretrained(tmp_path / "log-mel")
    index, saved, config = (
        load_index(shards, max_bad_fraction=0.5),
        {"moments": ([0.0] * 6, [1.0] * 6)},
        preset(),
    )
    data = replace(config.data, shards=shards, audio_encoder=str(tmp_path / "log-mel"))
    config = replace(config, data=data, model=replace(config.model, backbone=str(tmp_path)))
    with pytest.raises(ValueError, match=r"are log-mel energies.*or allow them by --data\.features any"):
        config.prepare(index, saved)
    allowed = replace(config, data=replace(data, features="any"))
    assert allowed.prepare(index, saved)["audio_encoder"] == data.audio_encoder
    assert "warning: the audio features of" in capsys.readouterr().out
    # A run that began before this option existed may go on.
    refuse_changes(as_dict(allowed), config, "runs/x")


def test_only_trainings_with_a_published_backbone_warn(shards, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    index = load_index(shards, max_bad_fraction=0.5)
    saved = {"moments": ([0.0] * 6, [1.0] * 6)}
    for preset in (tiny, small):
        config = preset()
        backbone = config.model.backbone and str(tmp_path)
        config = replace(
            config,
            data=replace(config.data, shards=shards),
            model=replace(config.model, backbone=backbone),
        )
        facts = config.prepare(index, saved)
        origins = {"latent_origin": None, "audio_origin": None}
        assert facts == {"moments": saved["moments"], "audio_encoder": None, **origins}
        printed = capsys.readouterr().out
        assert printed.count("warning: the audio features of") == (1 if preset is small else 0)
        assert printed.count("has no audio_encoder/ in it or next to it") == (0 if preset is small else 1)
