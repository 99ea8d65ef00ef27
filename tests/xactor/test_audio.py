"""Test the audio features. Their windows are fixed, so streamed features equal those of the whole file."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from xactor.audio import WindowSpec, sound_needed
from xactor.audio.encoder import FeatureStream, LogMelEncoder, Wav2Vec2Encoder, load_audio_encoder
from xactor.audio.windows import cut_window
from xactor.rates import frame_count

SPEC = WindowSpec(hop_frames=8, left_frames=24, right_frames=2)


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    carrier = np.sin(2 * np.pi * 140 * t) + 0.3 * rng.standard_normal(len(t))
    return (0.1 * carrier * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def tiny_wav2vec2() -> Wav2Vec2Model:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Wav2Vec2Model(config)


@pytest.fixture(params=["log-mel", "wav2vec2"])
def encoder(request):
    if request.param == "log-mel":
        return LogMelEncoder(mels=16, windows=SPEC)
    return Wav2Vec2Encoder(tiny_wav2vec2(), windows=SPEC)


def test_features_have_one_row_for_each_frame(encoder):
    samples = speechlike(3.33)
    features = encoder.features(samples)
    assert features.shape == (frame_count(len(samples)), encoder.layers, encoder.width)
    assert features.shape[0] == round(3.33 * 25)
    assert np.isfinite(features).all()


def test_a_prefix_has_the_whole_files_features(encoder):
    """The features of a window are final as soon as its audio is there, whatever follows."""
    whole = speechlike(6.0)
    features = encoder.features(whole)
    for seconds in (2.0, 3.5):
        prefix = encoder.features(whole[: int(seconds * 16_000)])
        settled = (int(seconds * 25) - SPEC.right_frames) // SPEC.hop_frames * SPEC.hop_frames
        assert settled > 0
        np.testing.assert_allclose(prefix[:settled], features[:settled], atol=1e-5)


def test_the_batch_size_does_not_change_the_features(encoder):
    samples = speechlike(4.0)
    np.testing.assert_allclose(
        encoder.features(samples, batch_windows=1), encoder.features(samples, batch_windows=5), atol=1e-5
    )


def test_streamed_pieces_equal_the_whole(encoder):
    samples = speechlike(4.0)
    pieces = list(encoder.stream(samples, batch_windows=3))
    assert [len(piece) for piece in pieces] == [24, 24, 24, 24, 4]
    np.testing.assert_allclose(np.concatenate(pieces), encoder.features(samples), atol=1e-5)


@pytest.mark.parametrize("piece_samples", [1000, 5120, 16_123, 200_000])
def test_audio_in_pieces_has_the_features_of_the_whole(encoder, piece_samples):
    samples = speechlike(6.3)
    stream = FeatureStream(encoder)
    received, made = 0, []
    for piece in np.split(samples, range(piece_samples, len(samples), piece_samples)):
        made.append(stream.feed(piece))
        received += len(piece)
        certain = (received // 640 - SPEC.right_frames) // SPEC.hop_frames * SPEC.hop_frames
        # Features are returned as soon as they are final, and not earlier.
        assert sum(map(len, made)) == max(certain, 0)
        assert stream._samples.nbytes <= 4 * 640 * (SPEC.frames + SPEC.hop_frames) + 4 * piece_samples
    made.append(stream.end())
    np.testing.assert_allclose(np.concatenate(made), encoder.features(samples), atol=1e-5)


def test_a_bad_piece_of_audio_leaves_the_stream_unchanged(encoder):
    samples, stream = speechlike(2.0), FeatureStream(encoder)
    with pytest.raises(ValueError, match="longer than 320 samples .*got 0"):
        stream.end()
    made = [stream.feed(samples[:9000])]
    with pytest.raises(ValueError, match="NaN or infinite"):
        stream.feed(np.full(700, np.nan, np.float32))
    made += [stream.feed(samples[9000:]), stream.end()]
    np.testing.assert_allclose(np.concatenate(made), encoder.features(samples), atol=1e-5)


def test_a_feature_does_not_depend_on_distant_audio(encoder):
    """A feature depends on sound at most left_frames back and one window ahead."""
    a, b = speechlike(6.0), speechlike(6.0)
    b[: 16_000 // 2] = 0.0  # the sound of frames 0 to 12
    last_affected_window = (12 + SPEC.left_frames) // SPEC.hop_frames + 1
    first_equal = (last_affected_window + 1) * SPEC.hop_frames
    np.testing.assert_array_equal(encoder.features(a)[first_equal:], encoder.features(b)[first_equal:])
    assert not np.array_equal(encoder.features(a)[:12], encoder.features(b)[:12])


def test_the_noise_of_a_long_pause_is_not_amplified_to_speech():
    """A window that holds only the noise of a pause, at -79 dBFS, looks like silence and not like speech."""
    encoder = LogMelEncoder(windows=SPEC)
    speech = speechlike(3.0)
    noise = 10 ** (-79 / 20) * np.random.default_rng(0).standard_normal(3 * 16_000).astype(np.float32)
    silence = encoder.features(np.concatenate([speech, np.zeros_like(noise)]))[-25:].mean(0)
    pause = encoder.features(np.concatenate([speech, noise]))[-25:]
    spoken = encoder.features(speech)[:50]
    assert np.abs(pause - silence).mean() < 0.25 * np.abs(spoken - silence).mean()
    # Speech that was recorded 15 dB quieter has the same features.
    quiet = encoder.features(0.18 * speech)[:50]
    assert np.abs(quiet - spoken).mean() < 0.05 * np.abs(spoken - silence).mean()


def test_a_burst_lands_on_its_frame():
    sound = 0.01 * np.random.default_rng(1).standard_normal(16_000 * 4).astype(np.float32)
    sound[40 * 640 + 160 : 40 * 640 + 480] *= 50  # the middle half of frame 40
    assert LogMelEncoder(mels=16, windows=SPEC).features(sound).mean(axis=(1, 2)).argmax() == 40


def test_wav2vec2_convolutions_land_on_their_frame():
    encoder = Wav2Vec2Encoder(tiny_wav2vec2(), layers=(0,), windows=SPEC)
    # In samples: Wav2Vec2's stride is 320, half of its receptive field is 200, and a video frame lasts 640.
    centres = encoder._positions() * 320 + 200
    expected = (torch.arange(SPEC.hop_frames) + SPEC.left_frames) * 640 + 320
    torch.testing.assert_close(centres, expected.float())


def test_a_saved_encoder_gives_the_same_features(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = load_audio_encoder(tmp_path)
    samples = speechlike(2.0)
    np.testing.assert_allclose(again.features(samples), encoder.features(samples), atol=1e-6)
    assert again.windows == SPEC


def test_any_transformers_wav2vec2_folder_loads(tmp_path):
    tiny_wav2vec2().save_pretrained(tmp_path)
    encoder = load_audio_encoder(tmp_path)
    assert isinstance(encoder, Wav2Vec2Encoder)
    assert (encoder.layers, encoder.width, encoder.chosen) == (4, 32, (1, 2, 3, 4))
    assert load_audio_encoder(tmp_path, layers=(0, 4)).layers == 2


def test_windows_start_before_the_sound_and_end_after_it():
    samples = speechlike(1.0)
    first = cut_window(samples, 0, SPEC)
    assert (first[: SPEC.left_frames * 640] == 0).all()
    assert abs(first[SPEC.left_frames * 640 :].mean()) < 1e-4
    assert (cut_window(samples, 50, SPEC) == 0).all()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 16_000), np.float32), r"mono.*\(2, 16000\)"),
        (np.zeros(100, np.float32), "longer than 320 samples .*got 100"),
        (np.array([0.0] * 900 + [np.nan], np.float32), "NaN"),
    ],
)
def test_bad_audio_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        LogMelEncoder(windows=SPEC).features(samples)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_audio_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="wav2vec2.*'bert'"):
        load_audio_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"0\.\.4, got 9"):
        Wav2Vec2Encoder(tiny_wav2vec2(), layers=(9,))
    with pytest.raises(ValueError, match="hop_frames must be >= 1, got 0"):
        WindowSpec(hop_frames=0)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (0, 40), (7, 8), (8, 16), (29, 75), (60, 75)])
def test_features_of_some_frames_equal_the_whole_files(first, last):
    """The encoder gets only the audio that these frames depend on."""
    samples = speechlike(3)
    encoder = Wav2Vec2Encoder(tiny_wav2vec2(), windows=SPEC)
    first_sample, last_sample = sound_needed(first, last, SPEC)
    part = encoder.features_of(samples[first_sample:last_sample], first, last, start=first_sample)
    torch.testing.assert_close(part, encoder.features(samples)[first:last], atol=1e-5, rtol=1e-5)
