"""Decide what happens where the speech is longer or shorter than the picture."""

import math
from dataclasses import dataclass

from xactor.options import DubOptions
from xactor.rates import FPS

# A smaller difference is rounding of the containers.
_SAME_S = 1 / FPS


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Hold where the frames, the sound and the changes of a dubbed video end."""

    held: int = 0
    """How many times the last frame is repeated."""
    sound_end_s: float | None = None
    """Time at which the sound is cut off, None for its own end."""
    picture_end_s: float = math.inf
    """Frames that begin at this time or later are left out."""
    changes_end_s: float = math.inf
    """Frames that begin at this time or later are not changed."""
    note: str | None = None
    """Remark for the user."""

    @classmethod
    def of(cls, speech_s: float, picture_s: float, frame_s: float, options: DubOptions) -> "Lengths":
        """Return what the options choose.

        Args:
            speech_s: Length of the speech in seconds.
            picture_s: Length of the picture in seconds.
            frame_s: Usual duration of a frame in seconds.
            options: The options.

        Raises:
            ValueError: The lengths differ by more than a frame, and the options refuse that.
        """
        longer_s = speech_s - picture_s
        if abs(longer_s) <= max(_SAME_S, frame_s):
            return cls()
        word, choice = ("longer", options.when_longer) if longer_s > 0 else ("shorter", options.when_shorter)
        text = f"the speech is {abs(longer_s):.2f} s {word} than the picture ({speech_s:.2f} and {picture_s:.2f} s)"
        match word, choice:
            case "longer", "hold":
                return cls(held=math.ceil(longer_s / frame_s), note=f"{text}: the last frame is held")
            case "longer", "cut":
                return cls(sound_end_s=picture_s, note=f"{text}: its end is cut off")
            case "shorter", "rest":
                return cls(note=f"{text}: the lips rest after it")
            case "shorter", "pass":
                return cls(changes_end_s=speech_s, note=f"{text}: later frames are not changed")
            case "shorter", "cut":
                return cls(picture_end_s=speech_s, note=f"{text}: the end of the picture is cut off")
        raise ValueError(f"{text}, and when_{word} is {choice}")
