"""Compute by how much a video's sound is longer than its pictures. In a dubbed video both must have the same length.

Sound and pictures are decoded, and samples and frames are counted as a player would play them. Durations in headers are
ignored. If a video has round(25 x s) frames for s seconds of sound, the two differ by at most half a frame, 20 ms.
"""

from pathlib import Path

from xactor.media import read_audio, read_frames
from xactor.rates import FPS, SAMPLE_RATE_HZ


def length_difference_s(video: str | Path) -> float:
    """Return the length of the sound minus the length of the pictures, in seconds.

    Raises:
        ValueError: The file has no sound or no pictures, or cannot be decoded.
    """
    sound_s = len(read_audio(video)) / SAMPLE_RATE_HZ
    return sound_s - sum(1 for _ in read_frames(video)) / FPS
