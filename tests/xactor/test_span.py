"""Test that a span of a video has the frames that a player shows, from any start, and that playlists are refused."""

from fractions import Fraction

import av
import numpy as np
import pytest

from xactor.media import read_audio, read_frames, read_span, write_video
from xactor.media.container import open_container


def write(path, times: list[Fraction], *, stretch: Fraction | None = None, rotation: int = 0) -> None:
    """Write a video whose frame i is shown at times[i], in seconds. `number_in` reads i from the picture."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90_000)
        video.options = {"crf": "5", "threads": "1", "g": "20"}
        if stretch:
            video.codec_context.sample_aspect_ratio = stretch
        if rotation:
            video.set_display_rotation(rotation)
        for i, time in enumerate(times):
            picture = np.full((32, 64, 3), 16 * (i % 16), np.uint8)
            picture[:, 32:] = 16 * (i // 16)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def number_in(picture: np.ndarray) -> int:
    low, high = (round(float(half.mean()) / 16) for half in (picture[:, 4:28], picture[:, 36:60]))
    return low + 16 * high


RATES = {
    "25": [Fraction(n, 25) for n in range(100)],
    "29.97": [Fraction(n * 1001, 30_000) for n in range(110)],
    "50": [Fraction(n, 50) for n in range(120)],
    "uneven": [Fraction(n * n, 2500) for n in range(100)],
    "late": [1 + Fraction(n, 30) for n in range(100)],
}


@pytest.mark.parametrize("times", RATES.values(), ids=RATES.keys())
def test_a_frame_is_the_picture_that_a_player_shows_at_the_frames_middle(tmp_path, times):
    write(tmp_path / "a.mp4", times)
    seen = [number_in(picture) for picture in read_span(tmp_path / "a.mp4")]
    started = times[0]  # a player starts with the first picture, as there is no sound
    for n, number in enumerate(seen):
        middle = started + Fraction(2 * n + 1, 50)
        # The file's times are rounded, so two pictures are possible where one ends at the middle.
        shown = {
            max(i for i, time in enumerate(times) if time <= middle + rounding)
            for rounding in (-Fraction(1, 10_000), Fraction(1, 10_000))
        }
        assert number in shown, n
    # An event is seen at most half a frame early or late.
    for i, time in enumerate(times):
        if i in seen and i:
            assert abs(seen.index(i) / 25 - float(time - started)) <= 0.0201


@pytest.mark.parametrize("name", ["25", "29.97", "uneven"])
def test_a_span_equals_the_same_frames_of_the_whole_video(tmp_path, name):
    write(tmp_path / "a.mp4", RATES[name])
    everything = list(read_span(tmp_path / "a.mp4"))
    for first, end in ((0, 10), (1, 3), (37, 61), (len(everything) - 3, len(everything) + 9)):
        part = list(read_span(tmp_path / "a.mp4", first, end))
        assert np.array_equal(part, everything[first:end])
    with (tmp_path / "a.mp4").open("rb") as file:  # a file object, as a remote file is
        assert np.array_equal(list(read_span(file, 5, 9)), everything[5:9])
        assert np.array_equal(list(read_span(file, 7, 8)), everything[7:8])


def test_pictures_are_upright_with_square_pixels_and_reduced(tmp_path):
    write(tmp_path / "wide.mp4", RATES["25"][:3], stretch=Fraction(2))
    write(tmp_path / "turned.mp4", RATES["25"][:3], rotation=90)
    assert next(read_span(tmp_path / "wide.mp4")).shape == (32, 128, 3)
    assert next(read_span(tmp_path / "wide.mp4", max_px=64)).shape == (16, 64, 3)
    assert next(read_span(tmp_path / "turned.mp4")).shape == (64, 32, 3)
    assert next(read_span(tmp_path / "turned.mp4", max_px=16)).shape == (16, 8, 3)


def test_a_playlist_is_refused(tmp_path):
    """FFmpeg would follow a playlist to files that its sender may not read, or to other hosts."""
    write_video(
        tmp_path / "secret.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, samples=np.zeros(0, np.float32)
    )
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    lists = {"a.m3u8": playlist, "a.mp4": "ffconcat version 1.0\nfile 'secret.mp4'\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        for read in (read_audio, lambda path: next(read_frames(path)), lambda path: next(read_span(path))):
            with pytest.raises(ValueError, match="cannot be decoded"):
                read(tmp_path / name)
        with (
            (tmp_path / name).open("rb") as file,
            pytest.raises(ValueError, match="cannot be decoded"),
            open_container(file),
        ):
            pass
