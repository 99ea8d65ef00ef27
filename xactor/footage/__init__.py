"""Dub footage: keep every frame of a video and let the main face speak other words.

The head, the body, the light and the cut stay those of the footage. Each frame is its own reference: the renderer's
guess network moves the mouth from the controls that the frame shows to those that the new speech asks for, and the
difference is added to the frame within a soft region around the lips and the jaw.
"""

from xactor.footage.dub import Dubbing, dub_footage

__all__ = ["Dubbing", "dub_footage"]
