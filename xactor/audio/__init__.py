"""Audio features aligned with video frames.

`windows` defines which samples belong to which frames and needs no torch. `encoder` computes the features and needs
torch, so this package does not import it: some processes only read or write media.
"""

from xactor.audio.windows import WindowSpec, sound_needed

__all__ = ["WindowSpec", "sound_needed"]
