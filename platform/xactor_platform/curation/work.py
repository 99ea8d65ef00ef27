"""What the stages hand on: a video, then pieces of it with the clips in them, and the fates that end them.

    Video -> Probed -> Piece -> Piece ... -> Ended

A piece is what is worked on at a time, a minute at most, so that what dies with a worker is no more than that.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from xactor.faces import CropBox
from xactor_platform.bulk.pool import Spent

SPARE_FRAMES = 15  # of sound, before and after a piece: as far as SyncNet can say that it is shifted

Status = Literal[
    "kept", "dropped", "failed"
]  # failed is what could not be looked at; dropped is what was seen


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a video that somebody chose, in seconds, and where its face is (left, top, right, bottom, 0..1)."""

    start_s: float
    end_s: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Video:
    """A file.

    Attributes:
        key: of its name and path, fit for a clip's key. name: as people know it, below the folder.
        uri: where it lies. corpus, speaker: what its clips say of where they are from.
        segments: that are looked at; none for all of it.
    """

    key: str
    name: str
    uri: str
    corpus: str
    speaker: str
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file's header says: upright width and height, frames a second (0 where they vary), degrees, seconds."""

    width: int
    height: int
    fps: float
    rotation: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of a clip, or of a whole video: a line of the report.

    Attributes:
        clip: its key; empty where no clip came to be.
        start_s, end_s: in its video.
        reason, detail: a word to count by, and a sentence; empty for what is kept.
        crop_px: the side of the face's square in the video. blur, occluded, speech: see `Measures`.
        sync_offset: by how many frames the sound ran ahead of the lips, and has been delayed.
        syncnet: whose weights say so.
    """

    video: str
    status: Status
    reason: str = ""
    detail: str = ""
    clip: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    split: str = ""
    corpus: str = ""
    speaker: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    crop_px: int | None = None
    blur: float | None = None
    occluded: float | None = None
    speech: float | None = None
    sync_offset: int | None = None
    sync_confidence: float | None = None
    sync_distance: float | None = None
    syncnet: str | None = None

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A video that can be decoded."""

    video: Video
    facts: Facts
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the gates judge by.

    Attributes:
        crop_px: the side of the face's square in the video.
        blur: how much of the face's detail is gone, 0 (sharp) to 1.
        occluded: the part of the frames in which something covers the face.
        speech: how much the sound comes and goes as speech does, in dB.
    """

    crop_px: int
    blur: float | None = None
    occluded: float | None = None
    speech: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lips:
    """What SyncNet says of a clip, see `SyncScore`."""

    offset_frames: int
    confidence: float
    distance: float
    weights: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One steady face in one shot, frames first..end of its video.

    Attributes:
        box: the square around it. faces: its box in each frame, float32 [T, 4].
        points: eyes' outer corners and the nose's base, float32 [T, 3, 2], in pixels.
        mp4: the square, silent. trimmed: which of its frames are the clip's, where not all of them are.
        reason, detail: why it is dropped, or empty.
    """

    first: int
    end: int
    box: CropBox | None = None
    faces: np.ndarray | None = None
    points: np.ndarray | None = None
    mp4: bytes = b""
    measures: Measures | None = None
    lips: Lips | None = None
    trimmed: tuple[int, int] | None = None
    status: Status = "kept"
    reason: str = ""
    detail: str = ""

    def dropped(self, reason: str, detail: str, status: Status = "dropped") -> "Clip":
        """Without what only a clip that goes on needs."""
        return replace(self, status=status, reason=reason, detail=detail, mp4=b"", faces=None, points=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Frames first..end of a video, all of one shot, and the clips in them.

    Attributes:
        number, of: which of how many pieces of its video.
        samples: float32 [(end - first + 30) x 640], its sound, with 15 frames before and after; silence past its ends.
        heard: from which to which frame the video has sound.
    """

    video: Video
    facts: Facts
    number: int
    of: int
    first: int
    end: int
    samples: np.ndarray
    heard: tuple[int, int]
    clips: tuple[Clip, ...] = ()
    spent: Spent = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A piece that is finished and written down, or with `of` 0 a whole video.

    Attributes:
        again: it was finished before.
        looked_s: of the video.
    """

    key: str
    number: int
    of: int
    fates: tuple[Fate, ...]
    looked_s: float = 0.0
    again: bool = False
    spent: Spent = field(default_factory=dict)


def fate_of(video: Video, facts: Facts | None, status: Status, **more) -> Fate:
    """Of a clip or video, with what is known of where it is from."""
    known = {"width": facts.width, "height": facts.height, "fps": round(facts.fps, 3)} if facts else {}
    return Fate(video=video.name, corpus=video.corpus, speaker=video.speaker, status=status, **known, **more)
