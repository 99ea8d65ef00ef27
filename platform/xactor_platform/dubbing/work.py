"""What the stages hand on, a row of Ray Data's each: a video to make, in one state after another, or why it failed."""

from dataclasses import dataclass, field

import numpy as np

from xactor.faces import CropBox
from xactor.options import AnimateOptions
from xactor_platform.bulk.pool import Spent


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the manifest. number: from 1. image or video: of the portrait."""

    number: int
    id: str
    image: str | None
    video: str | None
    audio: str
    options: AnimateOptions


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A row that cannot be made. code: `bad_row`, `bad_input`, `too_large`, `storage`, `failed` or `lost`."""

    number: int
    id: str | None
    code: str
    message: str
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A video that is there. seconds: of its own length. made: in this run, not before."""

    row: Row
    frames: int
    seconds: float
    made: bool
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dub:
    """A video to make.

    Attributes:
        digest: of its files, its options and the model: what the video depends on.
        seconds: of sound, as the file's header has it: for the order of work and the time left.
    """

    row: Row
    digest: str
    seconds: float
    spent: Spent = field(default_factory=dict)

    @property
    def parts(self) -> str:
        """The folder of what is made of it so far."""
        return f".parts/{self.row.id}-{self.digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class Portrayed:
    """Decoded. square: uint8 [S, S, 3]. samples: float32 [N]. picture, box: for pasting back, as in `Face`."""

    dub: Dub
    square: np.ndarray
    samples: np.ndarray
    picture: np.ndarray
    box: CropBox
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Frames first..end of a video, with what they are rendered from.

    Attributes:
        number, of: which of how many segments. total: frames of the whole video.
        z: latents float32 [n, D] from frame `z_first` on, as far as windows that reach into the segment see.
        origin: the performance's first one, [D]; see `xactor.render.Window`.
    """

    dub: Dub
    number: int
    of: int
    first: int
    end: int
    total: int
    z_first: int
    z: np.ndarray
    origin: np.ndarray
    square: np.ndarray
    picture: np.ndarray
    box: CropBox
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A segment's frames, uint8 [n, S, S, 3]."""

    segment: Segment
    frames: np.ndarray
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A segment that is written down, without sound. made: in this run, not before."""

    dub: Dub
    number: int
    of: int
    made: bool
    spent: Spent = field(default_factory=dict)


def part_name(number: int) -> str:
    return f"{number:05d}.mp4"
