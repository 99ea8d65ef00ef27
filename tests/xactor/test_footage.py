"""Test the parts of the dubbing of footage: frames, places, colours, motion and lengths."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from footage_files import NTSC, frame_planes, noise_video, times
from sounds import write_sound

from xactor.controls import BLENDSHAPES
from xactor.footage.composite import add_change, dimmed, resampled
from xactor.footage.geometry import Geometry
from xactor.footage.lengths import Lengths
from xactor.footage.mixing import SPEECH, at_times, mixed
from xactor.footage.region import outline, soft_mask
from xactor.footage.track import FaceTrack, _Cuts
from xactor.media import Sound
from xactor.media.footage import Footage, copied, planes, write_footage
from xactor.media.hdr import is_hdr
from xactor.options import DubOptions

JAW, BROW = BLENDSHAPES.index("jawOpen"), BLENDSHAPES.index("browInnerUp")


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("speech") / "speech.wav", 0.9)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuvj420p"])
def test_frames_that_nobody_changes_are_written_as_they_came(tmp_path, speech, pixel_format):
    irregular = [Fraction(n, 100) for n in (0, 3, 4, 11, 20, 21, 40)]
    source = noise_video(
        tmp_path / "in.mp4",
        pixel_format=pixel_format,
        seconds=irregular,
        rotation=90,
        sample_aspect_ratio=Fraction(4, 3),
        colorspace=Colorspace.ITU709,
        color_range=ColorRange.MPEG,
        color_primaries=ColorPrimaries.BT709,
        color_trc=ColorTrc.BT709,
    )
    footage = Footage.of(source)
    count = write_footage(
        tmp_path / "out.mp4",
        footage,
        footage.frames(),
        sound=Sound.of(speech),
        crf=0,
        metadata={"comment": "x"},
    )
    again = Footage.of(tmp_path / "out.mp4")
    assert count == 7
    assert times(again.source) == pytest.approx([float(time) for time in irregular], abs=1e-4)
    facts = ("width", "height", "pixel_format", "pixel_aspect", "rotation", "colours")
    assert [getattr(again, name) for name in facts] == [getattr(footage, name) for name in facts]
    for old, new in zip(frame_planes(source), frame_planes(again.source), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    with av.open(str(again.source)) as container:
        assert container.metadata["comment"] == "x"
        assert container.streams.audio[0].codec_context.name == "aac"


def test_no_file_stays_if_writing_fails(tmp_path, speech):
    source = noise_video(tmp_path / "in.mp4", seconds=NTSC[:4])
    footage = Footage.of(source)

    def broken():
        yield from footage.frames()
        raise OSError("disk")

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="disk"):
        write_footage(tmp_path / "out" / "out.mp4", footage, broken(), sound=Sound.of(speech))
    assert not any((tmp_path / "out").iterdir())


def test_hdr_and_interlaced_footage_are_refused_in_one_line(tmp_path):
    hdr = noise_video(tmp_path / "hdr.mp4", seconds=NTSC[:2], color_trc=ColorTrc.SMPTE2084)
    assert is_hdr(ColorTrc.SMPTE2084)
    with pytest.raises(ValueError, match="hdr.mp4: HDR footage cannot be dubbed yet"):
        Footage.of(hdr)
    with pytest.raises(ValueError, match="no video track"):
        Footage.of(write_sound(tmp_path / "sound.wav"))
    with av.open(str(tmp_path / "fields.mp4"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        interlaced = 1 << 18 | 1 << 29  # AV_CODEC_FLAG_INTERLACED_DCT and _ME
        stream.codec_context.flags |= interlaced
        for picture in np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8):
            frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="interlaced"):
        list(Footage.of(tmp_path / "fields.mp4").frames())


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_places_in_the_picture_are_found_in_the_decoded_frame(tmp_path, rotation):
    source = noise_video(
        tmp_path / "in.mp4",
        seconds=NTSC[:1],
        rotation=rotation,
        sample_aspect_ratio=Fraction(2),
        size=(64, 48),
    )
    footage = Footage.of(source)
    geometry = Geometry.of(footage)
    # Written in place: a copy has no rotation.
    frame = next(footage.frames())
    luma, *chroma = planes(frame)
    luma[:], chroma[0][:], chroma[1][:] = 20, 128, 128
    luma[10:14, 40:44] = 230
    picture = footage.converter()(frame)
    assert picture.shape[1::-1] == geometry.picture_size
    rows, columns = np.nonzero(picture[..., 0] > 200)
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    assert geometry.in_frame(centre) == pytest.approx([42, 12], abs=0.6)
    square = np.zeros((8, 8), np.float32)
    square[0, 0] = 1
    corner = geometry.in_frame(np.array([[0.5, 0.5], [7.5, 7.5]]))
    # The corner that is first in the picture lies where `unturned` puts it.
    y, x = np.argwhere(geometry.unturned(square))[0]
    assert (x == 0) == (corner[0, 0] < corner[1, 0])
    assert (y == 0) == (corner[0, 1] < corner[1, 1])


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuvj420p"])
@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601])
def test_an_added_change_of_colours_is_that_of_the_converted_picture(tmp_path, pixel_format, matrix):
    """The reference is FFmpeg's own conversion of the changed picture."""
    source = noise_video(tmp_path / "in.mp4", pixel_format=pixel_format, seconds=NTSC[:1], colorspace=matrix)
    footage = Footage.of(source)
    before = np.full((48, 64, 3), (90, 120, 70), np.uint8)
    change = np.array([40, 5, 100])

    def converted(picture):
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        full = pixel_format == "yuvj420p"
        return VideoReformatter().reformat(
            frame,
            format=pixel_format,
            dst_colorspace=matrix,
            dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        )

    frame, wanted = copied(converted(before)), converted((before + change).astype(np.uint8))
    colours = np.broadcast_to(change.astype(np.float32), (16, 32, 3))
    mask = np.ones((16, 32), np.float32)
    # Where the mask is 0, no pixel changes.
    mask[:, 24:] = 0
    untouched = [plane.copy() for plane in planes(frame)]
    add_change(frame, colours, mask, (8, 4), footage)
    for new, old, expected in zip(planes(frame), untouched, planes(wanted), strict=True):
        y, x = 48 // new.shape[0], 64 // new.shape[1]
        inside = np.zeros(new.shape, bool)
        inside[4 // y : 20 // y, 8 // x : 32 // x] = True
        assert np.array_equal(new[~inside], old[~inside])
        difference = new.astype(int) - expected
        assert np.abs(difference[inside]).max() <= (2 if footage.bits == 8 else 8)
        assert np.abs(new.astype(int) - old)[inside].max() > 5


def test_a_change_without_resampling_is_kept():
    change = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
    assert np.array_equal(resampled(change, (4, 2, 12, 10), (8, 8)), change[2:10, 4:12])


def test_painted_teeth_are_no_brighter_than_bright_skin():
    crops = np.full((1, 100, 100, 3), 90, np.uint8)
    # A third of the face is in bright light, and a lamp outside the face is brighter.
    crops[:, 20:45] = 150
    crops[:, :10] = 240
    change = np.zeros((1, 100, 100, 3), np.float32)
    change[:, 60:64], change[:, 70:74], change[:, 30:32], change[:, :5] = 140, -60, 10, 5
    done = crops + dimmed(change, crops)
    assert done[:, 60:64] == pytest.approx(150, abs=0.1)
    assert done[:, 70:74] == pytest.approx(30, abs=0.1)
    # Where the face is bright already, it becomes no brighter. Nothing becomes darker than it was.
    assert done[:, 30:32] == pytest.approx(150, abs=0.1)
    assert done[:, :5] == pytest.approx(240, abs=0.1)


def test_the_mask_is_soft_and_zero_at_its_edge():
    points = np.random.default_rng(0).uniform(40, 60, (165, 2)).astype(np.float32)
    ring = outline(points, points, whole=False)
    square = np.array([(30, 30), (70, 30), (70, 70), (30, 70)], np.float32)
    mask = soft_mask(square, (15, 15, 85, 85), 4)
    assert mask[35, 35] == 1
    assert not mask[0].any()
    assert not mask[:, -1].any()
    assert np.abs(np.diff(mask, axis=1)).max() < 0.2
    assert ring.shape[1] == 2


def test_speech_decides_the_mouth_and_acting_the_rest():
    rng = np.random.default_rng(0)
    footage, motion = rng.uniform(0, 1, (5, 51)), rng.normal(0, 0.2, (5, 51))
    rest = rng.uniform(0, 0.1, 51)
    spoken = np.clip(rest + motion, 0, 1)
    assert np.allclose(mixed(footage, motion, rest, 1.0), spoken)
    quiet = mixed(footage, motion, rest, 0.0)
    assert np.allclose(quiet[:, SPEECH], spoken[:, SPEECH])
    assert np.array_equal(quiet[:, ~SPEECH], footage[:, ~SPEECH])
    assert np.allclose(mixed(footage, motion, rest, 0.5)[:, BROW], (footage + spoken)[:, BROW] / 2)
    assert SPEECH[JAW]
    assert not SPEECH[[BROW, BLENDSHAPES.index("mouthSmileLeft"), BLENDSHAPES.index("eyeBlinkLeft")]].any()


def test_motion_is_read_at_the_times_of_the_frames_and_rests_outside():
    motion = np.zeros((10, 51), np.float32)
    motion[:, JAW] = np.arange(10)
    seen = at_times(motion, np.array([-0.1, 0, 0.05, 0.36, 0.399, 0.4, 1]))[:, JAW]
    assert seen == pytest.approx([0, 0, 1.25, 9, 9, 0, 0])


def test_lengths_are_made_to_fit_as_chosen():
    longer, shorter = (1.2, 1.0, 0.04), (1.0, 1.2, 0.04)
    assert Lengths.of(1.0, 1.03, 0.04, DubOptions()) == Lengths()
    assert Lengths.of(*longer, DubOptions()).held == 5
    assert Lengths.of(*longer, DubOptions(when_longer="cut")).sound_end_s == 1.0
    rest = Lengths.of(*shorter, DubOptions())
    assert (rest.picture_end_s, rest.changes_end_s) == (math.inf, math.inf)
    assert Lengths.of(*shorter, DubOptions(when_shorter="pass")).changes_end_s == 1.0
    assert Lengths.of(*shorter, DubOptions(when_shorter="cut")).picture_end_s == 1.0
    assert all(Lengths.of(*pair, DubOptions()).note for pair in (longer, shorter))
    for pair, word in ((longer, "longer"), (shorter, "shorter")):
        with pytest.raises(ValueError, match=rf"0\.20 s {word} than the picture .* when_{word} is refuse"):
            Lengths.of(*pair, DubOptions(when_longer="refuse", when_shorter="refuse"))
    with pytest.raises(ValueError, match=r"acting must be within 0\.\.1, got 1\.5"):
        DubOptions(acting=1.5)
    with pytest.raises(ValueError, match=r"crf must be within 0\.\.51, got 60"):
        DubOptions(crf=60)


def test_cuts_are_found_and_gestures_are_not():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 255, (2, 90, 120, 3), np.uint8)
    shift = [np.roll(a, n, axis=1) // 4 for n in range(12)]
    cuts = _Cuts()
    seen = [cuts.seen(picture) for picture in [*shift, *[b] * 5, *[a] * 5]]
    assert np.flatnonzero(seen).tolist() == [12, 17]


def track_of(usable: list[bool], shots: list[int], side: float = 100) -> FaceTrack:
    """Return a track whose face grows slowly."""
    count = len(usable)
    boxes = np.tile(np.array([100, 100, 100 + side, 100 + side], np.float32), (count, 1))
    boxes[~np.array(usable)] = 0
    return FaceTrack(
        times_s=np.arange(count) / 25,
        shots=np.array(shots),
        found=np.array(usable),
        points=np.zeros((count, 165, 2), np.float32),
        blendshapes=np.zeros((count, 51), np.float32),
        angles=np.zeros(count, np.float32),
        boxes=boxes,
        end_s=count / 25,
    )


def test_motion_fades_where_a_face_leaves_but_not_at_a_cut():
    track = track_of([True] * 12 + [False] * 3 + [True] * 10, [0] * 20 + [1] * 5)
    weights = track.weights()
    assert weights[:7].tolist() == [1] * 7
    assert weights[7:12] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert weights[12:15].tolist() == [0, 0, 0]
    assert weights[20:].tolist() == [1] * 5
    assert not track.weights(end_s=10 / 25)[10:].any()
    squares = track.squares()
    assert np.allclose(squares[track.usable], [150, 150, 170])


def test_small_and_turned_faces_are_not_usable():
    track = track_of([True] * 3, [0] * 3, side=40)
    assert not track.usable.any()
    track = track_of([True] * 3, [0] * 3)
    track.angles[1] = 70
    assert track.usable.tolist() == [True, False, True]


def test_lips_that_blendshapes_do_not_explain_end_where_they_should():
    """The lips of this person open although no blendshape rises, and the change that is asked for is none."""
    from xactor.faces.landmarks import INNER_LIPS, MEAN_LANDMARKS
    from xactor.footage.lips import Lips, lip_measures
    from xactor.footage.mixing import latent_change
    from xactor.pipeline import XActorPipeline

    network = XActorPipeline.from_pretrained().unet.guess_network
    points = np.tile(MEAN_LANDMARKS, (40, 1, 1))
    lower, upper = INNER_LIPS[1:10], INNER_LIPS[:10:-1]
    middle = (points[:, lower] + points[:, upper]) / 2
    points[:, lower], points[:, upper] = middle, middle
    drop = np.linspace(0, 0.1, 40, dtype=np.float32)
    points[:, lower, 1] += drop[:, None]
    shown = np.zeros((40, 51), np.float32)
    lips = Lips(network, points, shown)
    change = lips.corrected(np.zeros_like(shown), points, shown)
    moved = network.moved(torch.from_numpy(points), torch.from_numpy(latent_change(change))).detach().numpy()
    before, after = lip_measures(points), lip_measures(moved)
    assert before[-1, 0] > 0.3
    # Before, the lips were open by `before`.
    assert (after[:, 0] <= 0.2 * before[:, 0] + 0.01).all()
    assert np.abs(after[:, 1] - before[:, 1]).max() < 0.03
    assert not change[:, ~SPEECH].any()
    # Motion that opens the lips further than this person does is scaled down, and only the mouth's part of it.
    motion = np.zeros((100, 51), np.float32)
    motion[:, JAW], motion[:, BROW] = np.linspace(0, 1.5, 100), 0.5
    fitted = lips.fitted(motion)
    scale = fitted[-1, JAW] / 1.5
    assert scale < 0.6
    assert np.allclose(fitted[:, JAW], scale * motion[:, JAW])
    assert np.array_equal(fitted[:, BROW], motion[:, BROW])
    assert np.array_equal(lips.fitted(motion / 10), motion / 10)
