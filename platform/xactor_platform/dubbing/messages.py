"""Define the messages of the dubbing pipeline: the states of a row's video, or the reason why it failed.

    Row -> Dub | Done
    Dub -> Portrait -> Segment | SegmentFile
    Segment -> RenderedSegment -> SegmentFile

Any stage may return Failed instead.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xactor.faces import CropBox
from xactor.options import AnimateOptions
from xactor_platform.bulk.message import Message


@dataclass(frozen=True, kw_only=True)
class Row:
    """Represent one valid row of the manifest. Exactly one of `image` and `video` is given."""

    number: int
    """Number of the row, from 1."""
    id: str
    """Name of the output without its suffix."""
    image: str | None
    """Path or URI of the portrait."""
    video: str | None
    """Path or URI of a video that shows the portrait."""
    audio: str
    """Path or URI of the speech."""
    options: AnimateOptions
    """Options of this row."""


@dataclass(frozen=True, kw_only=True)
class Failed(Message):
    """Report a row whose video cannot be made."""

    finished: ClassVar[bool] = True

    number: int
    """Number of the row, from 1."""
    id: str | None
    """The row's id as the manifest gives it. None if it is missing or not a string."""
    code: str
    """`bad_row`, `bad_input`, `too_large`, `storage`, `failed` or `lost`."""
    message: str
    """The reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Done(Message):
    """Report a video that is complete."""

    finished: ClassVar[bool] = True

    row: Row
    """The video's row."""
    frames: int
    """Frames of the video."""
    seconds: float
    """Length of the video in seconds."""
    made: bool
    """Whether this run made it. False: an earlier run did."""


@dataclass(frozen=True, kw_only=True)
class Dub(Message):
    """Describe a video that is to be made."""

    row: Row
    """The video's row."""
    digest: str
    """SHA-256 of everything that the video depends on: its files, its options and the model."""
    seconds: float
    """Length of the audio by its header, in seconds. It orders the work and serves to estimate the time left."""

    @property
    def folder(self) -> str:
        """Return the folder below the output that holds the finished parts of the video."""
        return f".parts/{self.row.id}-{self.digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class Portrait(Message):
    """Hold the decoded files of a video that is to be made. See `xactor.decoding.FaceCrop`."""

    dub: Dub
    """The video."""
    square: np.ndarray
    """The face, uint8 [S, S, 3]."""
    samples: np.ndarray
    """The audio, float32 [N]."""
    picture: np.ndarray
    """The whole picture that frames are pasted back into, uint8 [H, W, 3]."""
    box: CropBox
    """Place of the square in the picture."""

    @property
    def row(self) -> Row:
        """Return the video's row."""
        return self.dub.row


@dataclass(frozen=True, kw_only=True)
class Segment(Message):
    """Hold everything that is needed to render frames `first` to `end` - 1 of a video."""

    dub: Dub
    """The video."""
    number: int
    """Number of the segment, from 0."""
    of: int
    """Number of segments of the video."""
    first: int
    """First frame of the segment."""
    end: int
    """Frame after the last one of the segment."""
    total: int
    """Frames of the whole video."""
    z_first: int
    """Frame of the first row of `z`."""
    z: np.ndarray
    """Latents of all windows that reach into the segment, float32 [n, D]."""
    origin: np.ndarray
    """The first latent that the motion model made, float32 [D]. See `xactor.render.Window`."""
    square: np.ndarray
    """The face, uint8 [S, S, 3]."""
    picture: np.ndarray
    """The whole picture that frames are pasted back into, uint8 [H, W, 3]."""
    box: CropBox
    """Place of the square in the picture."""

    @property
    def row(self) -> Row:
        """Return the video's row."""
        return self.dub.row


@dataclass(frozen=True, kw_only=True)
class RenderedSegment(Message):
    """Hold the frames of a segment."""

    segment: Segment
    """The segment."""
    frames: np.ndarray
    """Its frames, uint8 [n, S, S, 3]."""

    @property
    def row(self) -> Row:
        """Return the video's row."""
        return self.segment.dub.row


@dataclass(frozen=True, kw_only=True)
class SegmentFile(Message):
    """Report a segment whose frames are in a file, without sound."""

    finished: ClassVar[bool] = True

    dub: Dub
    """The video."""
    number: int
    """Number of the segment, from 0."""
    of: int
    """Number of segments of the video."""
    made: bool
    """Whether this run made it. False: an earlier run did."""


def segment_file_name(number: int) -> str:
    """Return the name of a segment's file in the folder of its video."""
    return f"{number:05d}.mp4"
