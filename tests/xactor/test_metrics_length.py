"""Test the length difference on videos of known lengths."""

import numpy as np
import pytest

from xactor.media import write_video
from xactor.metrics.length import length_difference_s


def video(path, frames: int, sound_s: float):
    pictures = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    tone = 0.1 * np.sin(np.arange(round(sound_s * 16_000)) / 6).astype(np.float32)
    write_video(path, iter(pictures), fps=25, samples=tone)
    return path


@pytest.mark.parametrize(
    ("frames", "sound_s", "difference_s"), [(50, 2.0, 0.0), (50, 2.6, 0.6), (75, 2.0, -1.0)]
)
def test_decoded_lengths_are_compared(tmp_path, frames, sound_s, difference_s):
    found = length_difference_s(video(tmp_path / "a.mp4", frames, sound_s))
    # Within a frame: AAC's last packet is padded to 64 ms at 16 kHz.
    assert found == pytest.approx(difference_s, abs=0.041)


def test_silence_counts_and_an_empty_file_is_named(tmp_path):
    pictures = np.zeros((10, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "mute.mp4", iter(pictures), fps=25, samples=np.zeros(6400, np.float32))
    assert abs(length_difference_s(tmp_path / "mute.mp4")) < 0.041
    (tmp_path / "none.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none\.mp4: the file is empty"):
        length_difference_s(tmp_path / "none.mp4")
