"""Test that pictures of videos are read and written with the colours and the shape that players show."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace, ColorTrc

from xactor.media import read_frames, read_span, write_video
from xactor.media.hdr import tone_map

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


@pytest.mark.parametrize("height", [240, 480])
def test_interlaced_pictures_show_one_moment(tmp_path, height):
    def bar(moment: int) -> np.ndarray:
        picture = np.full((height, 320, 3), 40, np.uint8)
        picture[:, 40 + 8 * moment : 60 + 8 * moment] = 220
        return picture

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, height, "yuv420p"
        stream.options = {"flags": "+ilme+ildct", "x264-params": "tff=1", "crf": "5", "threads": "1"}
        for number in range(6):
            # Every other row shows the bar half a frame later, further to the right.
            woven = bar(2 * number)
            woven[1::2] = bar(2 * number + 1)[1::2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(woven, format="rgb24")))
        container.mux(stream.encode(None))
    for read in (read_frames, read_span):
        pictures = np.stack(list(read(tmp_path / "a.mp4"))).astype(int)
        assert pictures.shape == (6, height, 320, 3)
        # Without teeth at the bar's edges, all rows are equal.
        assert np.abs(np.diff(pictures, axis=1)).max() <= 8
        for number, picture in enumerate(pictures):
            assert np.abs(picture - bar(2 * number)).mean() < 3


# Codes, 0 to 1, of the luminances 0, 10, 50, 100 and 203 cd/m² in PQ: ITU-R BT.2100, table 4.
PQ_CODES = (0.0, 0.3023, 0.4403, 0.5081, 0.5807)
# Luminances up to 142 cd/m² are kept: SDR has 255 x (luminance / 203) ** (1 / 2.4). White is compressed.
SDR_VALUES = (0, 73, 142, 190, 239)


@pytest.mark.parametrize("tagged", [True, False])
def test_hdr_becomes_sdr(tmp_path, tagged):
    codes = np.array(PQ_CODES).repeat(64)
    wide = np.tile(np.round(65_535 * codes).astype(np.uint16)[None, :, None], (64, 1, 3))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = wide.shape[1], 64, "yuv420p10le"
        stream.options = {"crf": "1", "threads": "1"}
        stream.codec_context.color_trc = ColorTrc.SMPTE2084
        stream.codec_context.color_primaries = 9
        stream.codec_context.colorspace = Colorspace.BT2020 if tagged else 2
        frame = av.VideoFrame.from_ndarray(wide, format="rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
        frame.color_trc, frame.color_primaries = ColorTrc.SMPTE2084, 9
        frame.colorspace = Colorspace.BT2020 if tagged else 2
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for read in (read_frames, read_span):
        seen = next(read(tmp_path / "a.mkv"))[32, 32::64].astype(int)
        assert np.abs(seen - np.array(SDR_VALUES)[:, None]).max() <= 2


def test_hlg_and_hdr_colours_become_sdr():
    def sdr(code: float | list[float], transfer: ColorTrc) -> list[int]:
        wide = np.broadcast_to(np.round(65_535 * np.array(code)), (1, 1, 3)).astype(np.uint16)
        return tone_map(wide, transfer)[0, 0].tolist()

    # ITU-R BT.2408: HDR's reference white of 203 cd/m² has the code 0.75 in HLG, and 0.58 in PQ.
    for code, transfer in ((0.75, ColorTrc.ARIB_STD_B67), (0.5807, ColorTrc.SMPTE2084)):
        assert sdr(code, transfer) == pytest.approx([239] * 3, abs=1)
    greys = [sdr(code, ColorTrc.ARIB_STD_B67)[0] for code in np.linspace(0, 1, 30)]
    assert greys == sorted(greys)
    assert (greys[0], greys[-1]) == (0, 255)
    # A colour keeps its hue: red stays red, and skin stays skin.
    red, green, blue = sdr([0.55, 0.1, 0.1], ColorTrc.SMPTE2084)
    assert red > 200
    assert max(green, blue) < 20
    red, green, blue = sdr([0.5, 0.44, 0.40], ColorTrc.SMPTE2084)
    assert red > green > blue > 60
