"""Test that a written video has the sound of its audio file, for any rate and channels."""

import av
import numpy as np
import pytest
from sounds import voice, write_sound

from xactor.media import Sound, read_audio, write_video

PICTURE = np.zeros((32, 32, 3), np.uint8)


def track(path, layout: str, rate_hz: int) -> np.ndarray:
    """Return the samples of a file, [N, channels]."""
    return np.concatenate(list(Sound.of(path).blocks(rate_hz, layout)))


@pytest.mark.parametrize(
    ("rate_hz", "layout", "codec", "suffix", "kept"),
    [
        (44_100, "stereo", "pcm_s16le", "wav", (44_100, "stereo")),
        (48_000, "stereo", "libopus", "webm", (48_000, "stereo")),
        (8_000, "mono", "pcm_u8", "wav", (8_000, "mono")),
        (96_000, "mono", "pcm_f32le", "wav", (96_000, "mono")),
        (48_000, "5.1", "flac", "flac", (48_000, "5.1")),
        (192_000, "stereo", "flac", "flac", (48_000, "stereo")),
        (37_800, "stereo", "pcm_s16le", "wav", (48_000, "stereo")),
    ],
)
def test_rate_and_channels_are_kept_as_far_as_aac_supports_them(
    tmp_path, rate_hz, layout, codec, suffix, kept
):
    source = write_sound(tmp_path / f"a.{suffix}", 1.23, rate_hz=rate_hz, layout=layout, codec=codec)
    sound = Sound.of(source)
    frames = round(1.23 * 25)
    kept_rate_hz, kept_layout = kept
    assert write_video(tmp_path / "a.mp4", [PICTURE] * frames, samples=sound) == frames
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name, stream.codec_context.name) == (*kept, "aac")
        assert container.streams.video[0].frames == frames
    before = track(source, kept_layout, kept_rate_hz)
    after = track(tmp_path / "a.mp4", kept_layout, kept_rate_hz)
    assert abs(len(after) - len(before)) <= 0.04 * kept_rate_hz
    for channel in range(before.shape[1]):
        if kept_layout == "5.1" and channel == 3:  # the low-frequency channel cannot hold this sound
            continue
        n = min(len(before), len(after))
        assert np.corrcoef(before[:n, channel], after[:n, channel])[0, 1] > 0.95


def test_channels_stay_in_their_places(tmp_path):
    source = write_sound(tmp_path / "a.wav", 1.0, rate_hz=44_100, layout="stereo")
    write_video(tmp_path / "a.mp4", [PICTURE] * 25, samples=Sound.of(source))
    left, right = np.abs(track(tmp_path / "a.mp4", "stereo", 44_100)).mean(axis=0)
    assert right / left == pytest.approx(0.5, abs=0.02)


def test_sound_from_a_file_equals_the_same_sound_from_samples(tmp_path):
    source = write_sound(tmp_path / "a.wav", 1.5, codec="pcm_f32le")
    write_video(tmp_path / "file.mp4", [PICTURE] * 38, samples=Sound.of(source))
    write_video(tmp_path / "samples.mp4", [PICTURE] * 38, samples=voice(1.5))
    assert (tmp_path / "file.mp4").read_bytes() == (tmp_path / "samples.mp4").read_bytes()


def test_sound_that_is_too_long_is_named(tmp_path):
    source = write_sound(tmp_path / "long.wav", 2.0)
    assert len(read_audio(source, max_seconds=2.0)) == 32_000
    with pytest.raises(ValueError, match=r"long\.wav: longer than 1\.9 s"):
        read_audio(source, max_seconds=1.9)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("flac", "flac"), ("aac", "m4a"), ("libopus", "webm"), ("libmp3lame", "mp3")]
)
@pytest.mark.parametrize("damage", ["noise", "cut"])
def test_a_corrupt_stream_is_named(tmp_path, codec, suffix, damage):
    source = write_sound(tmp_path / f"bad.{suffix}", 6.0, rate_hz=48_000, codec=codec)
    data = source.read_bytes()
    half = len(data) // 2
    noise = np.random.default_rng(0).integers(0, 256, len(data) - half, dtype=np.uint8).tobytes()
    source.write_bytes(data[:half] + (noise if damage == "noise" else b""))
    if (suffix, damage) == ("mp3", "cut"):  # an mp3 does not say its length, so the rest is a complete file
        assert len(read_audio(source)) == pytest.approx(48_000, abs=2_000)
    else:
        with pytest.raises(ValueError, match=rf"bad\.{suffix}: (corrupt|cannot be decoded)"):
            read_audio(source)
