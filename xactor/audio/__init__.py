"""Sound to frame-aligned features: here where frames lie in it, in `encoder` what hears it.

Only the encoders need torch; processes that read or write media are many and do without it.
"""

from xactor.audio.windows import WindowSpec, sound_needed

__all__ = ["WindowSpec", "sound_needed"]
