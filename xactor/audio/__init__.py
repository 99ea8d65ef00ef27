"""Audio features aligned with video frames.

`windows` says which samples belong to which frames and needs no torch. `encoder` computes the features. Processes
that only read or write media import this package without torch.
"""

from xactor.audio.windows import WindowSpec, sound_needed

__all__ = ["WindowSpec", "sound_needed"]
