"""Sound to frame-aligned features: here where frames lie in it, in `encoder` what hears it.

Only the encoders need torch; processes that read or write media are many and do without it.
"""

from xactor.audio.windows import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, WindowSpec, frame_count, sound_needed

__all__ = ["FPS", "SAMPLES_PER_FRAME", "SAMPLE_RATE_HZ", "WindowSpec", "frame_count", "sound_needed"]
