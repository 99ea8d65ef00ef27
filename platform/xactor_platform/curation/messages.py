"""Define the messages of the curation pipeline: a video, its pieces with their clips, and the results.

    Video -> Probed -> Piece -> Piece ... -> Ended

A piece is at most a minute of a video, so that the death of a worker loses the work on at most a minute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from xactor.faces import CropBox
from xactor_platform.bulk.message import Message

SPARE_FRAMES = 15
"""Number of frames of sound that a piece has before its start, and also after its end: the largest offset that SyncNet
finds."""

Status = Literal["kept", "dropped", "failed"]
"""Result of a clip or video. `dropped`: its quality or its content is not good enough. `failed`: it could not be
examined."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Describe a part of a video that the video's dataset selects."""

    start_s: float
    """Start in the video, in seconds."""
    end_s: float
    """End in the video, in seconds."""
    box: tuple[float, float, float, float] | None = None
    """Place of the face: left, top, right, bottom as fractions of the picture, 0 to 1. None: not known."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """Describe a video file."""

    key: str
    """Unique key, made of the file's name and a digest of the path. Keys of the video's clips begin with this key."""
    name: str
    """Path of the video below the folder of all videos, as reports show it."""
    uri: str
    """Path or URI of the file."""
    corpus: str
    """Name of the dataset, copied to the clips."""
    speaker: str
    """Name of the speaker, copied to the clips."""
    segments: tuple[Segment, ...] = ()
    """Parts of the video to examine. Empty: the whole video."""
    size_bytes: int = 0
    """Size of the file. 0: not known."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Hold the facts that a file's header and first picture give."""

    width: int
    """Width of the upright picture, in pixels."""
    height: int
    """Height of the upright picture, in pixels."""
    fps: float
    """Average number of frames per second, 0 if the file does not state it."""
    rotation: int
    """Rotation of the stored pictures, in degrees."""
    seconds: float
    """Length in seconds."""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """Report the result of a clip, or of a whole video that gave no clip, as one row of the report."""

    video: str
    """Name of the video."""
    status: Status
    """Result of the clip or video."""
    reason: str = ""
    """Reason in one word, by which the report counts clips. Empty for kept clips."""
    detail: str = ""
    """Reason in one sentence. Empty for kept clips."""
    clip: str = ""
    """Key of the clip. Empty where the video gave no clip."""
    start_s: float = 0.0
    """Start in the video, in seconds."""
    end_s: float = 0.0
    """End in the video, in seconds."""
    split: str = ""
    """Split of the clip: `short`, `long` or `test`. Empty if the clip is not kept."""
    corpus: str = ""
    """Name of the dataset."""
    speaker: str = ""
    """Name of the speaker."""
    person: str = ""
    """Name of the person, whom several speakers can be. Empty if the clip is not kept."""
    own_similarity: float | None = None
    """Mean cosine between the clip's face and those of the person's other clips. None if it is not known."""
    other_similarity: float | None = None
    """Mean cosine between the clip's face and those of the most similar other person. None if it is not known."""
    width: int = 0
    """Width of the video, in pixels."""
    height: int = 0
    """Height of the video, in pixels."""
    fps: float = 0.0
    """Frames per second of the video."""
    crop_px: int | None = None
    """See `Measures`."""
    outside: float | None = None
    """See `Measures`."""
    yaw: float | None = None
    """See `Measures`."""
    roll: float | None = None
    """See `Measures`."""
    lips: float | None = None
    """See `Measures`."""
    blur: float | None = None
    """See `Measures`."""
    occluded: float | None = None
    """See `Measures`."""
    speech: float | None = None
    """See `Measures`."""
    sync_offset: int | None = None
    """Frames by which the sound was ahead of the lips. The clip's sound is delayed by this number."""
    sync_confidence: float | None = None
    """SyncNet's confidence."""
    sync_distance: float | None = None
    """SyncNet's distance."""
    syncnet: str | None = None
    """Name of the SyncNet weights that judged the clip."""

    @property
    def seconds(self) -> float:
        """Length of the clip in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class Probed(Message):
    """Hold a video that can be decoded, with its facts."""

    video: Video
    """The video."""
    facts: Facts
    """Facts of the video."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Hold the measures that the gates compare with their bounds to drop clips of bad quality.

    Blur and covers are None if an earlier gate dropped the clip.
    """

    crop_px: int
    """Side of the face's square in the video, in pixels."""
    outside: float
    """Fraction of the square that was outside the picture before the square was moved inside."""
    yaw: float
    """Median angle, in degrees, by which the head is turned to the left or right."""
    roll: float
    """Median angle, in degrees, by which the head is tilted in the picture's plane."""
    lips: float
    """Standard deviation of the opening of the lips. The opening is about 0 for closed lips and 1 for a wide-open
    mouth; see `xactor.controls.lip_opening`."""
    speech: float
    """Difference between the loud and the quiet parts of the sound, in dB: large for speech, 0 for silence."""
    blur: float | None = None
    """Fraction of the face's detail that is missing, 0 (sharp) to 1."""
    occluded: float | None = None
    """Fraction of the frames in which something covers the face."""


@dataclass(frozen=True, kw_only=True)
class SyncVerdict:
    """Hold SyncNet's verdict on a clip. See `SyncScore`."""

    offset_frames: int
    """Frames by which the sound is ahead of the lips."""
    confidence: float
    """Confidence in the offset."""
    distance: float
    """Smallest distance between the embeddings of sound and lips."""
    weights: str
    """Name of SyncNet's weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prints:
    """Hold what shows of which recording a clip of T frames is a copy, and which person it shows."""

    words: np.ndarray
    """Fingerprint of the sound, one word a frame, 0 where it is quiet, uint32 [T]."""
    levels: np.ndarray
    """Level of the sound in each frame, see `sound_levels`, uint8 [T]."""
    pictures: np.ndarray
    """Fingerprints of every fifth picture, 64 bits each, uint64 [ceil(T / 5)]."""
    face: np.ndarray | None
    """Embedding of the face, of length 1, float32 [K]. None without a model."""


PRINT_TYPES = {"words": np.uint32, "levels": np.uint8, "pictures": np.uint64, "face": np.float32}
"""Type of each array of `Prints`, by its name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Hold the frames of a video from `first` up to `end`, which show one face in one place in one shot.

    Below, T is the number of frames of `mp4`. Without `mp4`, T is `end - first`.
    """

    first: int
    """First frame."""
    end: int
    """Frame after the last one."""
    box: CropBox | None = None
    """Square of the video around the face, the same in all frames. It lies inside the picture."""
    outside: float = 0.0
    """Fraction of the square that was outside the picture before the square was moved inside."""
    faces: np.ndarray | None = None
    """Left, top, right and bottom of the face in each frame, in pixels of the video, float32 [T, 4]."""
    points: np.ndarray | None = None
    """Outer corners of the eyes and base of the nose, in pixels of the video, float32 [T, 3, 2]."""
    controls: np.ndarray | None = None
    """Control track: the face's motion as 57 numbers per frame, float32 [T, 57]; see `xactor.controls`."""
    landmarks: np.ndarray | None = None
    """Landmarks of the face in the square, float32 [T, K, 2]; see `xactor.faces.landmarks`."""
    mp4: bytes = b""
    """Encoded video of the square, without sound."""
    measures: Measures | None = None
    """Measures so far."""
    sync: SyncVerdict | None = None
    """SyncNet's verdict."""
    trimmed: tuple[int, int] | None = None
    """Range (first, end) of the frames of `mp4` that belong to the clip. None: all of them."""
    prints: Prints | None = None
    """Prints of the clip's sound, pictures and face."""
    status: Status = "kept"
    """Result so far."""
    reason: str = ""
    """Reason for not keeping the clip, one word. Empty if the clip is kept."""
    detail: str = ""
    """The same reason in one sentence. Empty if the clip is kept."""

    def dropped(self, reason: str, detail: str, status: Status = "dropped") -> "Clip":
        """Return the clip marked as dropped (or failed), without the data that only kept clips need."""
        nothing = dict.fromkeys(("faces", "points", "controls", "landmarks", "prints"))
        return replace(self, status=status, reason=reason, detail=detail, mp4=b"", **nothing)


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece(Message):
    """Hold the frames of a video from `first` up to `end`, all of one shot, and the clips in these frames."""

    video: Video
    """The video."""
    facts: Facts
    """Facts of the video."""
    number: int
    """Number of the piece, from 0."""
    of: int
    """Number of pieces of the video."""
    first: int
    """First frame."""
    end: int
    """Frame after the last one."""
    samples: np.ndarray
    """Sound with SPARE_FRAMES (15) more frames before and after the piece, silent outside the video, 640 samples per
    frame, float32 [(end - first + 30) x 640]."""
    heard: tuple[int, int]
    """Range (first, end) of the video's frames that have sound."""
    clips: tuple[Clip, ...] = ()
    """Clips found so far."""


@dataclass(frozen=True, kw_only=True)
class Ended(Message):
    """Report a piece that is finished and saved, or a whole video."""

    finished: ClassVar[bool] = True

    key: str
    """Key of the video."""
    number: int
    """Number of the piece, from 0."""
    of: int
    """Number of pieces of the video. 0 if this message reports the whole video."""
    fates: tuple[Fate, ...]
    """Fates of the piece's clips, or the one fate of the whole video."""
    prints: Mapping[str, Prints] = field(default_factory=dict)
    """Prints of the kept clips, by the clips' keys."""
    looked_s: float = 0.0
    """Seconds of video that were examined."""
    earlier: bool = False
    """Whether an earlier run finished the piece or the video."""


def fate_of(video: Video, facts: Facts | None, status: Status, **more: Any) -> Fate:
    """Return the fate of a clip or a video. The fields that describe the video are copied from `video` and `facts`.

    Args:
        video: the video.
        facts: facts of the video, None if it could not be probed.
        status: status of the clip or video.
        more: other fields of the fate.
    """
    known = {"width": facts.width, "height": facts.height, "fps": round(facts.fps, 3)} if facts else {}
    return Fate(video=video.name, corpus=video.corpus, speaker=video.speaker, status=status, **known, **more)
