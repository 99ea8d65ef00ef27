"""Define the rates of pictures and sound that all packages share. This module imports neither torch nor numpy."""

FPS = 25
"""Video frames per second."""

SAMPLE_RATE_HZ = 16_000
"""Sound samples per second, mono."""

SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS
"""Sound samples per video frame: 640, which are 40 ms."""


def frame_count(samples: int) -> int:
    """Return the number of video frames of a recording: round(duration x FPS).

    Args:
        samples: The recording's length in samples at SAMPLE_RATE_HZ.
    """
    return round(samples / SAMPLES_PER_FRAME)
