"""Test that frames that are picked by their numbers equal those of a reader that starts at the beginning."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from xactor.media import read_frames
from xactor.media.seek import pick_frames


def write(path: Path, times: list[Fraction], **options: str) -> bytes:
    """Write a video of noise with pictures at the given times in seconds, and return its bytes."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1200)
        video.options = {"preset": "veryfast", "threads": "1", **options}
        for time in times:
            frame = av.VideoFrame.from_ndarray(generator.integers(0, 256, (48, 32, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = int(time * 1200), Fraction(1, 1200)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path.read_bytes()


STEADY = [Fraction(n, 25) for n in range(80)]


@pytest.mark.parametrize(
    ("name", "times", "options"),
    [
        ("keyframes.mp4", STEADY, {"g": "25"}),
        ("no_b.mp4", STEADY, {"g": "25", "bf": "0"}),
        ("open_gop.mp4", STEADY, {"x264-params": "keyint=12:open-gop=1:bframes=3:b-adapt=0"}),
        ("one_keyframe.mp4", STEADY, {"g": "250"}),
        ("matroska.mkv", STEADY, {"g": "25"}),
        ("faster.mp4", [Fraction(n, 30) for n in range(90)], {"g": "30"}),
        ("uneven.mp4", [Fraction(n * n, 400) for n in range(36)], {"g": "10"}),
        ("late.mp4", [1 + t for t in STEADY], {"g": "25"}),
    ],
)
def test_picked_frames_equal_those_of_a_full_read(tmp_path, name, times, options):
    video = write(tmp_path / name, times, **options)
    all_frames = list(read_frames(tmp_path / name))
    assert len(all_frames) > 70
    for n, expected in enumerate(all_frames):
        np.testing.assert_array_equal(next(pick_frames(video, [n])), expected, err_msg=f"frame {n}")
    for numbers in ([0, 1, 2, 40, 41], [5, 69], list(range(30, 60))):
        for n, got in zip(numbers, pick_frames(video, numbers), strict=True):
            np.testing.assert_array_equal(got, all_frames[n], err_msg=f"frame {n} of {numbers}")


def test_undecodable_content_is_named(tmp_path):
    video = write(tmp_path / "v.mp4", STEADY, g="25", movflags="+faststart")
    for broken in (b"", b"no video at all" * 100, video[: len(video) // 2], video[:100]):
        with pytest.raises(ValueError, match="cannot be decoded|no video track"):
            list(pick_frames(broken, [0, 79]))
    with pytest.raises(ValueError, match="ends after 80 frames, frame 80 was requested"):
        list(pick_frames(video, [3, 80]))
