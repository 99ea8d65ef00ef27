"""Test that pictures of videos are read and written with the colours and the shape that players show."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from xactor.media import read_frames, read_span, write_video

FOUR_COLOURS = np.zeros((64, 64, 3), np.uint8)


FOUR_COLOURS[:32, :32], FOUR_COLOURS[:32, 32:] = (200, 40, 40), (40, 200, 40)


FOUR_COLOURS[32:, :32], FOUR_COLOURS[32:, 32:] = (40, 40, 200), (220, 180, 150)


def test_a_written_video_states_its_colours_and_has_them(tmp_path):
    write_video(tmp_path / "a.mp4", [FOUR_COLOURS] * 3, samples=np.zeros(1920, np.float32))
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    # BT.709 in all four tags: matrix, range of TV, primaries and transfer.
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    for read in (read_frames, read_span):
        difference = next(read(tmp_path / "a.mp4"))[8::16, 8::16].astype(int) - FOUR_COLOURS[8::16, 8::16]
        assert np.abs(difference).max() <= 4


@pytest.mark.parametrize(("size", "matrix"), [(512, Colorspace.ITU601), (720, Colorspace.ITU709)])
def test_colours_without_a_tag_are_those_that_players_show(tmp_path, size, matrix):
    picture = FOUR_COLOURS.repeat(size // 64 + 1, 0).repeat(size // 64 + 1, 1)[:size, :size]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "5", "threads": "1"}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
        frame.colorspace = 2
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for read in (read_frames, read_span):
        difference = next(read(tmp_path / "a.mkv"))[8::64, 8::64].astype(int) - picture[8::64, 8::64]
        assert np.median(np.abs(difference)) <= 3
        assert np.abs(difference).max() <= 8


def test_pixels_that_are_not_square_become_square(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        frame = av.VideoFrame.from_ndarray(np.full((64, 48, 3), 9, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for read in (read_frames, read_span):
        assert next(read(tmp_path / "a.mp4")).shape == (64, 64, 3)
