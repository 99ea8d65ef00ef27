"""How much longer a video's sound is than its pictures: what a dub must not have.

Both are decoded and counted, on the clock that a player has: what a header claims does not enter. A video of
round(25 s) frames for s seconds of sound differs by at most half a frame, 20 ms.
"""

from pathlib import Path

from xactor.media import read_audio, read_frames
from xactor.rates import FPS, SAMPLE_RATE_HZ


def length_difference_s(video: str | Path) -> float:
    """Seconds of sound less seconds of pictures.

    Raises:
        ValueError: a file without sound or pictures, or one that cannot be decoded.
    """
    sound_s = len(read_audio(video)) / SAMPLE_RATE_HZ
    return sound_s - sum(1 for _ in read_frames(video)) / FPS
