"""Index a folder of shards: one row per sample, with the byte range of each member in its shard.

A shard is a WebDataset tar. A sample is here all files of one clip, and each of these files is a member.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xactor.origin import AUDIO, LATENTS, WORDS, Origin
from xactor_platform.data.checksums import FIELD, differs
from xactor_platform.data.scan import ScannedSample, ShardScan, scan_shard
from xactor_platform.data.shard_names import is_held_out
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import with_retries

# Maximum number of shards that are scanned concurrently.
SCAN_THREADS = 32
CONTROLS = "controls.npy"
"""Member with the control track of a clip, float32 [frames, 57]; see `xactor.controls`."""
LANDMARKS = "landmarks.npy"
"""Member with K landmarks in each of 8 frames of a clip, float32 [8, K, 2]; see `xactor.faces.landmarks`."""
LatentSource = Literal["encoder", "controls"]
"""Source of motion latents: a motion encoder applied to the pictures, or the fixed embedding of control tracks."""


@dataclass(frozen=True)
class BadSample:
    """Name a sample that cannot be used."""

    key: str
    """Key of the sample. Empty if this object stands for all samples that are missing at a truncated shard's end."""
    shard: str
    """Name of the shard."""
    reason: str
    """Description of the fault, for messages."""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.shard}: {key}{self.reason}"


@dataclass(frozen=True, kw_only=True)
class CorpusShape:
    """Describe one frame of a corpus of latents: a latent and its audio features."""

    latent_width: int
    """D, the width of a latent."""
    audio_layers: int
    """L, the number of layers of audio features."""
    audio_width: int
    """F, the width of each layer's features."""
    motion_dtype: str
    """Stored type of latents: float16 or float32."""
    audio_dtype: str
    """Stored type of audio features: float16 or float32."""

    def __str__(self) -> str:
        audio = f"[{self.audio_layers}, {self.audio_width}] {self.audio_dtype}"
        return f"motion [{self.latent_width}] {self.motion_dtype} and audio {audio} per frame"

    @property
    def members(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the stored dtype and the shape of one frame for each array, first motion, then audio."""
        return (
            (self.motion_dtype, (self.latent_width,)),
            (self.audio_dtype, (self.audio_layers, self.audio_width)),
        )

    @property
    def bytes_per_frame(self) -> int:
        """Return the stored bytes of one frame."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in self.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Describe the samples of a corpus. Each array holds one value per sample, [samples].

    `offset`, `length`, `header` and `crc` are keyed by the extension of a member (`motion.npy`, `mp4`, ...). The data
    of an array member begins at `offset + header` in its shard.
    """

    location: Location
    """Folder of the shards."""
    shard_names: tuple[str, ...]
    """Names of the shards, sorted."""
    shard_sizes: tuple[int, ...]
    """Bytes of each shard."""
    key: np.ndarray
    """Key of each sample, object (str)."""
    shard: np.ndarray
    """Position of each sample's shard in `shard_names`, int32."""
    frames: np.ndarray
    """Length of each sample in frames, int64."""
    speaker: np.ndarray
    """Speaker of each sample, object (str). Empty if unknown."""
    sync_confidence: np.ndarray
    """SyncNet's confidence that lips and sound are in sync, float32. NaN if unknown."""
    latent_origin: np.ndarray
    """Origin of each sample's motion latents, object (str); see `xactor.origin`. Empty if it was not recorded."""
    audio_origin: np.ndarray
    """Origin of each sample's audio features, object (str). Empty if it was not recorded."""
    digest: np.ndarray
    """Checksum of each sample's json and of the first bytes of its other members, uint32. It tells whether a sample of
    the same name and size has other content."""
    offset: Mapping[str, np.ndarray]
    """First byte of each member in its shard, int64. -1 if the sample lacks an optional member."""
    length: Mapping[str, np.ndarray]
    """Bytes of each member, int64."""
    header: Mapping[str, np.ndarray]
    """Bytes of the .npy headers of `motion.npy` and `audio.npy`, int32."""
    crc: Mapping[str, np.ndarray]
    """Checksums of each member, object (bytes). Empty if unknown; see `xactor_platform.data.checksums`."""
    shape: CorpusShape | None
    """Shape of a frame. None for a corpus of videos."""
    bad: tuple[BadSample, ...]
    """Unusable samples. They have no row."""

    @property
    def samples(self) -> int:
        """Return the number of samples."""
        return len(self.key)

    @property
    def frame_shape(self) -> CorpusShape:
        """Return `shape`. Raise ValueError for a corpus of videos."""
        if self.shape is None:
            raise ValueError(f"{self.location.uri}: holds videos, not latents: precompute them first")
        return self.shape

    def subset(self, mask: np.ndarray) -> "Index":
        """Return an index of the rows that a boolean mask or an array of row numbers selects."""
        columns = ("key", "shard", "frames", "speaker", "sync_confidence", LATENTS, AUDIO, "digest")
        groups = ("offset", "length", "header", "crc")
        return replace(
            self,
            **{name: getattr(self, name)[mask] for name in columns},
            **{
                name: {member: values[mask] for member, values in getattr(self, name).items()}
                for name in groups
            },
        )

    def training(self) -> "Index":
        """Return the samples of all shards that are not held out."""
        return self.subset(~self._is_held_out())

    def held_out(self) -> "Index":
        """Return the samples of held-out shards; see `xactor_platform.data.shard_names.is_held_out`."""
        return self.subset(self._is_held_out())

    def having(self, member: str) -> int:
        """Return the number of samples that have a member, for example `controls.npy`."""
        return int((self.offset[member] >= 0).sum()) if member in self.offset else 0

    def origin(self, kind: str) -> Origin:
        """Return what made the motion latents or the audio features of all samples whose origin is recorded.

        Args:
            kind: LATENTS or AUDIO of `xactor.origin`.

        Raises:
            ValueError: The samples have different origins.
        """
        counts = Counter(name for name in getattr(self, kind) if name)
        if len(counts) > 1:
            found = ", ".join(
                f"{count:,} samples have those of {name}" for name, count in counts.most_common()
            )
            raise ValueError(
                f"{self.location.uri}: mixes {WORDS[kind]} of different origins ({found}): "
                f"make a folder of shards for each"
            )
        return Origin(self.location.uri, next(iter(counts), None))

    def _is_held_out(self) -> np.ndarray:
        return np.array([is_held_out(name) for name in self.shard_names])[self.shard]

    def read(self, row: int, member: str) -> bytes:
        """Return the bytes of one member, such as `mp4`.

        Raises:
            KeyError: the sample does not have the member.
            ValueError: the bytes differ from their checksums.
        """
        offset = self.offset[member][row] if member in self.offset else -1
        if offset < 0:
            raise KeyError(f"{self.key[row]} has no {member}")
        shard = self.shard_names[self.shard[row]]

        def read() -> bytes:
            with self.location.open(shard) as file:
                return file.read_at(int(self.length[member][row]), int(offset))

        data = with_retries(read, f"{self.location.uri}/{shard}")
        if differs(data, self.crc_of(member, row)):
            raise ValueError(
                f"{self.location.uri}/{shard}: {self.key[row]}: {member} differs from its checksum"
            )
        return data

    def crc_of(self, member: str, row: int) -> bytes:
        """Return the checksums of one member. Empty if they are not known."""
        return self.crc[member][row] if member in self.crc else b""

    def read_meta(self, row: int) -> dict[str, Any]:
        """Return the parsed content of a sample's json member, without the checksums."""
        meta = json.loads(self.read(row, "json"))
        meta.pop(FIELD, None)
        return meta


def build_index(
    location: Location, shards: Mapping[str, int], known: Mapping[str, Sequence[str]] | None = None
) -> Index:
    """Scan shards in parallel, and return their index. Unusable samples have no row, and are listed in `Index.bad`.

    Args:
        location: folder of the shards.
        shards: size in bytes by name.
        known: keys of the samples that each shard held before, by name. They tell what a truncated shard has lost.
    """
    with ThreadPoolExecutor(min(SCAN_THREADS, len(shards))) as pool:

        def scan_one(shard: tuple[str, int]) -> ShardScan:
            return with_retries(lambda: scan_shard(location, *shard), f"{location.uri}/{shard[0]}")

        scans = list(pool.map(scan_one, shards.items()))
    required = _required_members(scans)
    # Usable samples, each with the number of its shard.
    good: list[tuple[int, ScannedSample]] = []
    bad: list[BadSample] = []
    # The shape of the corpus is the most frequent shape. Samples of another shape are bad.
    shapes = Counter(_frame_shape(sample) for scan in scans for sample in scan.samples if not sample.reason)
    # None stands for samples without arrays, which do not count. Deleting a missing key from a Counter is no error.
    del shapes[None]
    shape = shapes.most_common(1)[0][0] if shapes else None
    shard_of_key: dict[str, str] = {}
    found_keys = {sample.key for scan in scans for sample in scan.samples}
    for number, scan in enumerate(scans):
        # A truncated shard must count as at least one bad sample. If its last sample is unusable, that sample counts,
        # and so do the samples that it is known to have lost. If there are none of either, the shard ends between two
        # samples, and a bad sample without a key stands for the missing ones.
        needs_nameless_sample = bool(scan.broken)
        for sample in scan.samples:
            reason = sample.reason or _fault(sample, required, shape)
            if reason and scan.broken and sample is scan.samples[-1]:
                reason, needs_nameless_sample = scan.broken, False
            elif not reason and sample.key in shard_of_key:
                reason = f"the same key is in {shard_of_key[sample.key]}"
            if reason:
                bad.append(BadSample(sample.key, scan.shard, reason))
            else:
                shard_of_key[sample.key] = scan.shard
                good.append((number, sample))
        lost = (
            [key for key in (known or {}).get(scan.shard, ()) if key not in found_keys] if scan.broken else []
        )
        bad += [BadSample(key, scan.shard, scan.broken) for key in lost]
        if needs_nameless_sample and not lost:
            bad.append(BadSample("", scan.shard, scan.broken))
    return _assemble(location, shards, shape, good, bad)


def _required_members(scans: list[ShardScan]) -> tuple[str, ...]:
    """Return the members that every sample must have.

    If any sample has an array, or no sample has an mp4, this is a corpus of latents. Otherwise this is a corpus of
    videos.
    """
    found = {extension for scan in scans for sample in scan.samples for extension in sample.members}
    has_arrays = bool(found & {"motion.npy", "audio.npy"})
    if "mp4" in found and not has_arrays:
        return ("mp4", "json")
    return ("motion.npy", "audio.npy", "json")


def _frame_shape(sample: ScannedSample) -> CorpusShape | None:
    """Return the shape of the sample's frames, or None if the sample lacks an array."""
    if not {"motion.npy", "audio.npy"} <= set(sample.shape):
        return None
    (_, width), (_, layers, features) = sample.shape["motion.npy"], sample.shape["audio.npy"]
    return CorpusShape(
        latent_width=width,
        audio_layers=layers,
        audio_width=features,
        motion_dtype=sample.dtype["motion.npy"],
        audio_dtype=sample.dtype["audio.npy"],
    )


def _fault(sample: ScannedSample, required: tuple[str, ...], shape: CorpusShape | None) -> str:
    """Return the reason why a sample does not fit into the corpus, or an empty string."""
    missing = [name for name in required if name not in sample.members]
    if missing:
        return f"has no {', '.join(missing)}"
    if "motion.npy" in required and _frame_shape(sample) != shape:
        return f"has {_frame_shape(sample)}, the corpus {shape}"
    return ""


def _assemble(
    location: Location,
    shards: Mapping[str, int],
    shape: CorpusShape | None,
    good: list[tuple[int, ScannedSample]],
    bad: list[BadSample],
) -> Index:
    samples = [sample for _, sample in good]
    member_names = sorted({extension for sample in samples for extension in sample.members})
    array_names = sorted({extension for sample in samples for extension in sample.header})
    # Offset and length of each member of each sample. A member that a sample lacks has the offset -1.
    absent = (-1, 0)
    ranges = {name: [sample.members.get(name, absent) for sample in samples] for name in member_names}
    return Index(
        location=location,
        shard_names=tuple(shards),
        shard_sizes=tuple(shards.values()),
        key=np.array([sample.key for sample in samples], dtype=object),
        shard=np.array([number for number, _ in good], dtype=np.int32),
        frames=np.array([sample.frames for sample in samples], dtype=np.int64),
        speaker=np.array([sample.speaker for sample in samples], dtype=object),
        sync_confidence=np.array([sample.sync_confidence for sample in samples], dtype=np.float32),
        latent_origin=np.array([sample.latent_origin for sample in samples], dtype=object),
        audio_origin=np.array([sample.audio_origin for sample in samples], dtype=object),
        digest=np.array([sample.digest for sample in samples], dtype=np.uint32),
        offset={name: np.array([offset for offset, _ in ranges[name]], dtype=np.int64) for name in ranges},
        length={name: np.array([length for _, length in ranges[name]], dtype=np.int64) for name in ranges},
        header={
            name: np.array([sample.header.get(name, 0) for sample in samples], dtype=np.int32)
            for name in array_names
        },
        crc={
            name: np.array([sample.crc.get(name, b"") for sample in samples], dtype=object)
            for name in sorted({name for sample in samples for name in sample.crc} & ranges.keys())
        },
        shape=shape,
        bad=tuple(bad),
    )
