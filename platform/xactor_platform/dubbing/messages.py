"""Define the messages of the dubbing pipeline. Each holds the state of a manifest row's video, or why it failed.

    Row -> Dub | Done
    Dub -> Portrait -> Segment | SegmentFile
    Segment -> RenderedSegment -> SegmentFile

Any stage may return Failed instead. A segment is a part of a video that one actor renders.
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
    """Path or URI of a video that the portrait is taken from."""
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
    """`bad_row` (the row is invalid), `bad_input` or `too_large` (a file), `storage` (the output cannot be written),
    `lost` (the workers died) or `failed` (another error)."""
    message: str
    """The reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Done(Message):
    """Report a video that is complete."""

    finished: ClassVar[bool] = True

    row: Row
    """The video's row."""
    frames: int
    """Number of frames of the video."""
    seconds: float
    """Length of the video in seconds."""
    made: bool
    """Whether this run made the video. If False, an earlier run made it."""


@dataclass(frozen=True, kw_only=True)
class Dub(Message):
    """Describe a video that is to be made."""

    row: Row
    """The video's row."""
    digest: str
    """SHA-256 of everything that the video depends on: its files, its options and the model."""
    seconds: float
    """Length of the audio in seconds as its header states it. It decides the order of the videos, and the time that is
    left is estimated from it."""

    @property
    def folder(self) -> str:
        """Return the name of the folder in the output that holds the video's finished segments and its audio track."""
        return f".parts/{self.row.id}-{self.digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class Portrait(Message):
    """Hold the decoded files of a video that is to be made. See `xactor.decoding.FaceCrop`."""

    dub: Dub
    """The video."""
    square: np.ndarray
    """The square that is cut out around the face, uint8 [S, S, 3]."""
    samples: np.ndarray
    """The audio, float32 [N]."""
    picture: np.ndarray
    """The whole picture that frames are pasted back into, uint8 [H, W, 3]. H is 0 if the row asks for no pasting."""
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
    """Number of frames of the whole video."""
    z_first: int
    """Number of the frame that the first row of `z` belongs to."""
    z: np.ndarray
    """Motion latents of all windows that reach into the segment, float32 [n, D]. A window is a group of successive
    frames that the renderer denoises together."""
    origin: np.ndarray
    """The first latent that the motion model made, float32 [D]. See `xactor.render.Window`."""
    square: np.ndarray
    """The square that is cut out around the face, uint8 [S, S, 3]."""
    picture: np.ndarray
    """See `Portrait.picture`."""
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
    """The segment's frames, uint8 [n, S, S, 3]."""

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
    """Whether this run made the file. If False, an earlier run made it."""


# Name of the file of a video's audio track, in the same folder as its segments. See `DecodingPool.sound`.
TRACK_FILE = "track.w64"


def segment_file_name(number: int) -> str:
    """Return the name of a segment's file in the folder of its video."""
    return f"{number:05d}.mp4"
