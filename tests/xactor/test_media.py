"""Test that sound and pictures of any file keep their length and their time."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from av.stream import Disposition

from xactor.media import (
    FragmentedVideo,
    LiveSound,
    join_videos,
    mono,
    read_audio,
    read_frames,
    remux,
    resample,
    write_video,
)


def tone(samples: int, hz: float = 440, rate_hz: int = 16_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / rate_hz)).astype(np.float32)


def grey(level: int, height: int = 64, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def timed_video(path, times_s: list[Fraction], *, rotation: int = 0) -> None:
    """Write a silent video whose frame i is shown at times_s[i].

    A frame's grey level is its time in hundredths of a second, modulo 256.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "5", "threads": "1"}
        stream.codec_context.time_base = Fraction(1, 90_000)
        if rotation:
            stream.set_display_rotation(rotation)
        for time_s in times_s:
            picture = grey(round(float(time_s) * 100) % 256)
            picture[:20, :20] = 255  # a mark in the upper left
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("samples", [777, 16_000, 33_000, 48_001])
def test_a_video_is_read_with_the_length_that_was_written(tmp_path, samples):
    frames = max(1, round(samples / 640))
    sound = tone(samples)
    assert write_video(tmp_path / "a.mp4", (grey(i * 3) for i in range(frames)), samples=sound) == frames
    heard = read_audio(tmp_path / "a.mp4")
    assert heard.dtype == np.float32
    assert len(heard) == samples
    assert np.corrcoef(heard, sound)[0, 1] > 0.98
    seen = [picture[32, 24, 0] for picture in read_frames(tmp_path / "a.mp4")]
    assert np.abs(np.array(seen, int) - 3 * np.arange(frames)).max() <= 3


@pytest.mark.parametrize("side", [48, 64, 136])
def test_moving_pictures_are_encoded_the_same_each_time(tmp_path, side):
    noise = np.random.default_rng(0).integers(0, 256, (30, side, side, 3), dtype=np.uint8)
    frames = [noise[0] // 2 + frame // 8 for frame in noise]
    made = set()
    for _ in range(12):
        write_video(tmp_path / "a.mp4", frames, samples=np.zeros(0, np.float32))
        made.add((tmp_path / "a.mp4").read_bytes())
    assert len(made) == 1


def test_the_index_is_in_front_and_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, [grey(9)] * 5, samples=tone(3200), metadata={"comment": "made"})
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert data == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == "made"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_a_failed_video_leaves_no_file(tmp_path):
    def frames():
        yield grey(1)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_video(tmp_path / "a.mp4", frames(), samples=tone(640))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [([], "at least one"), ([grey(0, 63)], "even"), ([grey(0), grey(0, 32)], "first was 64x48")],
)
def test_bad_frames_are_refused(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, samples=tone(640))
    assert list(tmp_path.iterdir()) == []


def shown(times_s: list[Fraction], frames: int) -> np.ndarray:
    """Return the time of the picture that a player shows in the middle of each frame."""
    middles = [Fraction(2 * n + 1, 50) for n in range(frames)]
    return np.array([float(max(t for t in times_s if t <= middle)) for middle in middles])


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(50), Fraction(10), Fraction(25)])
def test_a_video_of_any_rate_is_read_at_25_fps(tmp_path, rate):
    times = [Fraction(i) / rate for i in range(int(2 * rate))]
    timed_video(tmp_path / "a.mp4", times)
    seen = [float(picture[50, 40, 0]) for picture in read_frames(tmp_path / "a.mp4")]
    assert len(seen) == round(len(times) / rate * 25)
    assert np.abs(np.array(seen) - 100 * shown(times, len(seen))).max() <= 2.5


def test_a_variable_rate_keeps_its_time(tmp_path):
    times = [Fraction(t, 1000) for t in (0, 20, 40, 200, 233, 266, 700, 720, 970)]
    timed_video(tmp_path / "a.mp4", times)
    seen = np.array([float(picture[50, 40, 0]) for picture in read_frames(tmp_path / "a.mp4")])
    assert np.abs(seen - 100 * shown(times, len(seen))).max() <= 2.5


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_are_read_upright(tmp_path, rotation):
    timed_video(tmp_path / "a.mp4", [Fraction(i, 25) for i in range(3)], rotation=rotation)
    picture = next(iter(read_frames(tmp_path / "a.mp4")))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stored = next(container.decode(video=0))
    assert picture.shape[:2] == ((64, 48) if rotation == 180 else (48, 64))
    upright = np.rot90(stored.to_ndarray(format="rgb24"), round(stored.rotation / 90))
    assert np.array_equal(picture, upright)
    # The display matrix turns counter-clockwise: 90 degrees move the mark from the upper left to the lower left.
    corner = {90: (-5, 5), 180: (-5, -5), 270: (5, -5)}[rotation]
    assert picture[corner][0] > 200


@pytest.mark.parametrize(
    ("layout", "rate_hz", "codec", "suffix"),
    [
        ("mono", 8_000, "pcm_u8", "wav"),
        ("stereo", 44_100, "pcm_s16le", "wav"),
        ("5.1", 48_000, "flac", "flac"),
        ("mono", 96_000, "pcm_f32le", "wav"),
        ("stereo", 48_000, "libopus", "webm"),
    ],
)
def test_any_sound_becomes_mono_at_16_khz(tmp_path, layout, rate_hz, codec, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        channels = len(stream.layout.channels)
        sound = np.tile(tone(rate_hz, rate_hz=rate_hz), (channels, 1))
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate_hz, frame_size=960)
        for part in (frame, None):  # None flushes the resampler
            for block in resampler.resample(part):
                container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    heard = read_audio(path)
    assert abs(len(heard) - 16_000) <= 400
    spectrum = np.abs(np.fft.rfft(heard[:16_000] * np.hanning(len(heard[:16_000]))))
    assert abs(spectrum.argmax() - 440) <= 2


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(grey(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(
            (tone(8000)[None] * 32767).astype(np.int16), format="s16", layout="mono"
        )
        sound.sample_rate, sound.pts, sound.time_base = 16_000, 8000, Fraction(1, 16_000)
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    heard = read_audio(tmp_path / "a.mkv")
    assert abs(len(heard) - 16_000) <= 16
    assert np.abs(heard[:7900]).max() == 0
    assert np.abs(heard[8100:]).max() > 0.2


def write_tracks(path, sounds: list[np.ndarray], *, default: int = 0) -> None:
    """Write uncompressed audio tracks, each int16 [channels, N] at 16 kHz."""
    with av.open(str(path), "w") as container:
        layouts = [{1: "mono", 2: "stereo"}[len(sound)] for sound in sounds]
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout=layout) for layout in layouts]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for stream, sound, layout in zip(streams, sounds, layouts, strict=True):
            frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate = 16_000
            container.mux([*stream.encode(frame), *stream.encode(None)])


def as_int16(sound: np.ndarray) -> np.ndarray:
    return (sound * 32_767).astype(np.int16)


def loudest_hz(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax() * 16_000 / len(sound))


@pytest.mark.parametrize("default", [0, 1, 2])
def test_the_track_that_players_play_is_read(tmp_path, default):
    tracks = [as_int16(tone(16_000, hz))[None] for hz in (300, 600, 900)]
    write_tracks(tmp_path / "a.mkv", tracks, default=default)
    assert loudest_hz(read_audio(tmp_path / "a.mkv")) == 300 * (default + 1)


@pytest.mark.parametrize(
    ("left", "right", "peak"),
    [(1.0, -1.0, 0.3), (1.0, -0.95, 0.3), (1.0, 1.0, 0.3), (1.0, 0.0, 0.15), (0.0, 1.0, 0.15)],
)
def test_channels_that_cancel_each_other_do_not_become_silence(tmp_path, left, right, peak):
    stereo = np.stack([left * tone(16_000), right * tone(16_000)])
    write_tracks(tmp_path / "a.wav", [as_int16(stereo)])
    assert np.abs(read_audio(tmp_path / "a.wav")).max() == pytest.approx(peak, abs=0.01)
    assert np.abs(mono(stereo.T, 16_000)).max() == pytest.approx(peak, abs=0.01)


def test_uncompressed_sound_in_an_mp4_is_whole(tmp_path):
    """Such a file's index counts samples, not packets."""
    write_tracks(tmp_path / "a.mov", [as_int16(tone(48_000))[None]])
    assert len(read_audio(tmp_path / "a.mov")) == 48_000


def test_a_part_that_was_cut_out_without_encoding_is_whole(tmp_path):
    """An edit list hides the frames since the last key frame, which are in the file."""
    times_s = [Fraction(i, 25) for i in range(250)]
    timed_video(tmp_path / "a.mp4", times_s)
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                for name in ("pts", "dts"):
                    setattr(packet, name, getattr(packet, name) - 3 * packet.time_base.denominator)
                packet.stream = stream
                target.mux(packet)
    levels = [int(picture[40, 30, 0]) for picture in read_frames(tmp_path / "b.mp4")]
    assert len(levels) == 175
    assert abs(levels[0] - 300 % 256) <= 3


@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_video_is_refused(tmp_path, kept):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(50)]
    write_video(tmp_path / "a.mp4", pictures, samples=tone(32_000), keyframe_every=5)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"cut\.mp4: (truncated \(|corrupt)"):
        list(read_frames(tmp_path / "cut.mp4"))


def test_resampling_keeps_duration():
    assert abs(len(resample(tone(22_050, rate_hz=22_050), 22_050, 16_000)) - 16_000) <= 2


def test_errors_name_the_file_and_the_cause(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    timed_video(tmp_path / "silent.mp4", [Fraction(i, 25) for i in range(5)])
    with pytest.raises(ValueError, match=r"missing\.wav: no such file"):
        read_audio(tmp_path / "missing.wav")
    with pytest.raises(ValueError, match=r"empty\.wav: the file is empty"):
        read_audio(tmp_path / "empty.wav")
    with pytest.raises(ValueError, match=r"noise\.mp4: cannot be decoded"):
        read_audio(tmp_path / "noise.mp4")
    with pytest.raises(ValueError, match=r"silent\.mp4: no audio track"):
        read_audio(tmp_path / "silent.mp4")
    write_video(tmp_path / "cut.mp4", [grey(i) for i in range(50)], samples=tone(32_000))
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 4])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        list(read_frames(tmp_path / "cut.mp4"))


def fragments(frames: int, samples: np.ndarray, *, live: bool) -> list[bytes]:
    """Return the fragments of a video whose pictures turn white at frame 25.

    There is one item per picture, which may be empty, and a last one from the end of the video.
    """
    track = LiveSound() if live else samples
    video = FragmentedVideo(track, metadata={"comment": "made"})
    pieces = []
    for number in range(frames):
        if isinstance(track, LiveSound):
            track.hear(samples[number * 640 : (number + 1) * 640])
        pieces.append(video.add(grey(255 if number >= 25 else 0)))
    return [*pieces, video.end()]


@pytest.mark.parametrize("live", [False, True])
def test_fragments_come_early_and_keep_sound_and_pictures_in_sync(tmp_path, live):
    samples = np.zeros(75 * 640, np.float32)
    samples[16_000:16_400] = 0.9 * np.sin(np.arange(400) / 3)  # one second in, as the pictures turn white
    pieces = fragments(75, samples, live=live)
    first_fragment = next(number for number, piece in enumerate(pieces) if piece)
    assert first_fragment <= 11  # after a window of 12 pictures
    assert sum(bool(piece) for piece in pieces) >= 8
    path, plain = tmp_path / "fragments.mp4", tmp_path / "plain.mp4"
    path.write_bytes(b"".join(pieces))
    remux(path, plain)
    for made in (path, plain):
        sound, pictures = read_audio(made), list(read_frames(made))
        assert len(pictures) == 75
        assert abs(np.flatnonzero(np.abs(sound) > 0.2)[0] - 16_000) < 40
        assert next(number for number, picture in enumerate(pictures) if picture.mean() > 100) == 25
        with av.open(str(made)) as container:
            assert container.metadata["comment"] == "made"
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    for one, other in zip(read_frames(path), read_frames(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    data = plain.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    assert b"moof" not in data


def test_a_video_in_fragments_needs_a_picture():
    with pytest.raises(ValueError, match="at least one frame"):
        FragmentedVideo(np.zeros(640, np.float32)).end()


def test_joined_segments_equal_the_video_written_at_once(tmp_path):
    frames = [grey(i * 4) for i in range(60)]
    sound = tone(60 * 640)
    write_video(tmp_path / "whole.mp4", frames, samples=sound)
    cuts = [0, 24, 25, 60]
    segments = []
    for number, (first, end) in enumerate(pairwise(cuts)):
        segments.append(tmp_path / f"{number}.mp4")
        write_video(segments[-1], frames[first:end], samples=np.zeros(0, np.float32))
    made = join_videos(segments, tmp_path / "joined.mp4", samples=sound, metadata={"comment": "made"})
    assert made == 60
    expected = [picture for segment in segments for picture in read_frames(segment)]
    joined = list(read_frames(tmp_path / "joined.mp4"))
    assert len(joined) == 60
    assert all(np.array_equal(a, b) for a, b in zip(joined, expected, strict=True))
    np.testing.assert_array_equal(read_audio(tmp_path / "joined.mp4"), read_audio(tmp_path / "whole.mp4"))
    with av.open(str(tmp_path / "joined.mp4")) as container:
        assert container.metadata["comment"] == "made"
        assert float(container.streams.video[0].average_rate) == 25
        assert container.start_time == 0


def test_joining_no_segments_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="at least one segment"):
        join_videos([], tmp_path / "joined.mp4", samples=np.zeros(0, np.float32))
    assert not list(tmp_path.iterdir())
