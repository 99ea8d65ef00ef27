"""Find the samples of a shard, a WebDataset tar, by reading its headers but not its arrays.

A sample is all files of one key in the tar, and each of these files is a member.
"""

import json
import math
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyarrow import NativeFile

from xactor.origin import AUDIO, LATENTS
from xactor.rates import FPS
from xactor_platform.data.checksums import BLOCK_BYTES, read_checksums
from xactor_platform.data.npy import parse_npy_header
from xactor_platform.storage.location import Location

# Size of a tar's blocks in bytes.
BLOCK = 512
# Minimum bytes of a read. One such read covers the end of a member, a small json and the next array's header.
READ_AHEAD = 4096
# Bytes after a tar's end marker that are checked. Tools pad a tar with zeros, usually to a multiple of 10,240 bytes.
_MAX_PADDING = 1 << 20


class BrokenShard(ValueError):
    """Report that a tar cannot be read past some byte."""

    def __init__(self, message: str, name: str = ""):
        """Keep the name of the member that is incomplete, if it is known."""
        super().__init__(message)
        self.name = name


@dataclass
class ScannedSample:
    """Hold the facts about one sample from its headers and its json. Members are keyed by file extension."""

    key: str
    """Key of the sample."""
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset in the shard and length in bytes of each member."""
    frames: int = -1
    """Length in frames, from the json. -1 if the json has none."""
    speaker: str = ""
    """Speaker, from the json."""
    sync_confidence: float = float("nan")
    """SyncNet's confidence, from the json. NaN if the json has none."""
    latent_origin: str = ""
    """Origin of the motion latents, from the json. Empty if the json has none."""
    audio_origin: str = ""
    """Origin of the audio features, from the json. Empty if the json has none."""
    header: dict[str, int] = field(default_factory=dict)
    """Length of each array's .npy header in bytes."""
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each array."""
    dtype: dict[str, str] = field(default_factory=dict)
    """Type of each array, float16 or float32."""
    crc: dict[str, bytes] = field(default_factory=dict)
    """Checksums of the members, from the json. See `xactor_platform.data.checksums`."""
    digest: int = 0
    """CRC-32 of the first bytes of all members, with their names. The whole json is in it."""
    reason: str = ""
    """The fault that makes the sample unusable. Empty if there is none."""


@dataclass
class ShardScan:
    """Hold the scan of one shard."""

    shard: str
    """Name of the shard."""
    size: int
    """Bytes of the shard."""
    samples: list[ScannedSample]
    """Samples in the shard's order."""
    broken: str
    """The reason why the scan ended early. Empty if it did not."""


class _Window:
    """Read a file with a small read-ahead, so that a small header needs no request of its own to the storage."""

    def __init__(self, file: NativeFile, size: int):
        # `data` holds the bytes of the file from position `at` on.
        self.file, self.size, self.at, self.data = file, size, 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from position `offset` on."""
        first = offset - self.at
        if first < 0 or first + length > len(self.data):
            wanted = min(max(length, READ_AHEAD), self.size - offset)
            data = self.file.read_at(wanted, offset)
            # An object store's response that is cut within its headers reads as no bytes, which would look like the
            # end marker of a tar.
            if len(data) != wanted:
                raise OSError(f"read {len(data)} of {wanted} bytes at byte {offset}")
            self.at, self.data, first = offset, data, 0
        return self.data[first : first + length]


def scan_shard(location: Location, shard: str, size: int) -> ShardScan:
    """Read the tar headers, the .npy headers and the json of every sample of one tar.

    A fault of the tar raises no error. `ScannedSample.reason` and `ShardScan.broken` describe it.

    Args:
        location: folder of the shard.
        shard: name of the shard.
        size: bytes of the shard.
    """
    samples: list[ScannedSample] = []
    seen: set[str] = set()
    last_key, broken = "", ""
    with location.open(shard) as file:
        window = _Window(file, size)
        try:
            for name, offset, length, sparse in _members(window):
                key, extension = split_name(name)
                if not key:
                    continue
                readable = _readable(key)
                if key != last_key:
                    samples.append(ScannedSample(readable))
                    if readable != key:
                        samples[-1].reason = "its key is not UTF-8"
                    elif key in seen:
                        samples[-1].reason = "its members are not adjacent, or its key occurs twice"
                    seen.add(key)
                    last_key = key
                if sparse:
                    # Its bytes are not one range of the shard. This tool's readers read ranges.
                    samples[-1].reason = f"{extension} is stored with holes: make the tar without --sparse"
                    samples[-1].members[extension] = offset, length
                    continue
                _add_member(samples[-1], extension, offset, length, window)
        except BrokenShard as error:
            broken = str(error)
            key, _ = split_name(error.name)
            # If the incomplete member is the first of its sample, list the sample without members.
            if key and key != last_key:
                samples.append(ScannedSample(_readable(key)))
    for sample in samples:
        sample.reason = sample.reason or _disagreement(sample)
    return ShardScan(shard, size, samples, broken)


def _readable(text: str) -> str:
    """Replace characters that have no UTF-8, such as those that stand for bytes of another encoding, by `?`."""
    return text.encode("utf-8", "replace").decode()


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension as WebDataset does, at the first dot of the file's base name.

    Both are empty for a name that has no key or no dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension) if stem and dot else ("", "")


def _members(window: _Window) -> Iterator[tuple[str, int, int, bool]]:
    """Yield name, offset of the data, length in bytes, and whether it is sparse, of every regular file of a tar.

    The length of a sparse file, one that is stored without its holes, is that of the stored bytes.

    Raises:
        BrokenShard: the tar is truncated, or a header is not valid.
    """
    offset, long_name, sparse = 0, "", False
    while True:
        if offset + BLOCK > window.size:
            raise BrokenShard(f"truncated: ends at byte {window.size} without an end marker")
        block = window.read(offset, BLOCK)
        # A block of zeros marks the end.
        if not any(block):
            _check_end(window, offset)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise BrokenShard(f"no tar header at byte {offset}: {error}") from error
        if info.size < 0:
            raise BrokenShard(f"no tar header at byte {offset}: a size of {info.size} bytes")
        data = offset + BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            sparse, data = True, _end_of_sparse_map(window, offset)
        name = long_name or info.name
        readable = _readable(name)
        if data + info.size > window.size:
            raise BrokenShard(
                f"truncated: {readable} needs bytes up to {data + info.size}, the file ends at {window.size}",
                name,
            )
        # A name that is too long for a file's header is stored in an extra entry just before the file.
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = window.read(data, info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            try:
                records = dict(_pax_records(window.read(data, info.size)))
            except ValueError as error:
                raise BrokenShard(f"no pax header at byte {data}: {error}") from error
            long_name = records.get("GNU.sparse.name") or records.get("path", "")
            sparse = any(record.startswith("GNU.sparse.") for record in records)
        else:
            if info.isreg():
                yield name, data, info.size, sparse
            long_name, sparse = "", False
        # Data is padded to a whole number of blocks.
        offset = data + -(-info.size // BLOCK) * BLOCK


def _check_end(window: _Window, offset: int) -> None:
    """Raise BrokenShard if more members follow the end marker at `offset`: archives that were joined by `cat`."""
    after = min(window.size - offset, _MAX_PADDING)
    if any(window.read(offset, after)):
        raise BrokenShard(
            f"holds more data after its end marker at byte {offset}: shards must not be joined by cat"
        )


def _end_of_sparse_map(window: _Window, offset: int) -> int:
    """Return where the data of GNU's old kind of sparse file begins: after its header and the rest of its map."""
    # Byte 482 of the header tells whether a block of the map follows, and byte 504 of that block whether another does.
    extended, offset = window.read(offset, BLOCK)[482], offset + BLOCK
    while extended:
        if offset + BLOCK > window.size:
            raise BrokenShard(f"truncated: ends at byte {window.size} within a sparse file's map")
        extended, offset = window.read(offset, BLOCK)[504], offset + BLOCK
    return offset


def _pax_records(records: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and value of a pax header's records, each `<length> <name>=<value>\\n`.

    Raises:
        ValueError: a record's length is not a number, or does not fit the records.
    """
    while records:
        number, _, _ = records.partition(b" ")
        length = int(number)
        if not len(number) < length <= len(records):
            raise ValueError(f"a record of {length} bytes, where {len(records)} are left")
        name, _, value = records[len(number) + 1 : length].partition(b"=")
        yield name.decode("utf-8", "surrogateescape"), value[:-1].decode("utf-8", "surrogateescape")
        records = records[length:]


def _add_member(sample: ScannedSample, extension: str, offset: int, length: int, window: _Window) -> None:
    """Add a member to a sample, with the facts from its json or its .npy header. Set `reason` if there is a fault."""
    if extension in sample.members:
        sample.reason = sample.reason or f"has {extension} twice"
        return
    sample.members[extension] = offset, length
    # 1024 bytes are more than the .npy header of a plain array has.
    head = window.read(offset, length if extension == "json" else min(length, 1024))
    sample.digest = zlib.crc32(head, zlib.crc32(extension.encode("utf-8", "replace"), sample.digest))
    try:
        if extension == "json":
            _read_json(sample, head)
        elif extension in ("motion.npy", "audio.npy"):
            _read_header(sample, extension, head, length)
    # OverflowError: a number in the json is too large.
    except (ValueError, OverflowError) as error:
        sample.reason = sample.reason or f"{extension}: {error}"


def _read_json(sample: ScannedSample, text: bytes) -> None:
    """Set the fields that come from the json. Raise ValueError if it is faulty."""
    try:
        meta: Any = json.loads(text)
    # RecursionError: the json is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be parsed: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"must be an object, is a {type(meta).__name__}")
    sample.crc = read_checksums(meta)
    frames, fps = meta.get("frames"), meta.get("fps")
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames < 1 << 31:
        raise ValueError(f"frames must be a whole number >= 1, got {frames}")
    sample.frames = frames
    # A json may escape half of a character, which has no UTF-8.
    sample.speaker = _readable(str(meta.get("speaker", "")))
    sample.latent_origin = _readable(str(meta.get(LATENTS) or ""))
    sample.audio_origin = _readable(str(meta.get(AUDIO) or ""))
    confidence = meta.get("sync_confidence")
    sample.sync_confidence = float(confidence) if isinstance(confidence, (int, float)) else float("nan")
    if fps != FPS:
        raise ValueError(f"fps must be {FPS}, got {fps}")


def _read_header(sample: ScannedSample, extension: str, head: bytes, length: int) -> None:
    """Set the fields that come from an array's .npy header. Raise ValueError if the array is faulty.

    Args:
        sample: the sample to change.
        extension: extension of the member.
        head: first bytes of the member, with the complete header.
        length: bytes of the member.
    """
    try:
        header, dtype, fortran, shape = parse_npy_header(head)
    except ValueError as error:
        raise ValueError(f"not a .npy array ({error})") from error
    # Latents are [T, D], audio features are [T, L, F].
    axes = 2 if extension == "motion.npy" else 3
    if dtype not in ("<f2", "<f4"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype}")
    if fortran:
        raise ValueError("is stored in Fortran order")
    if len(shape) != axes or min(shape) < 1:
        raise ValueError(f"must have {axes} axes of at least 1, got shape {list(shape)}")
    # The third character of `<f2` or `<f4` is the size of a value.
    expected = header + math.prod(shape) * int(dtype[2])
    if expected != length:
        raise ValueError(f"holds {length} bytes, its header says {expected}")
    sample.header[extension], sample.shape[extension] = header, shape
    sample.dtype[extension] = str(np.dtype(dtype))


def _disagreement(sample: ScannedSample) -> str:
    """Return a message if a member has another length than the json states, otherwise an empty string."""
    for extension, shape in sample.shape.items():
        if sample.frames > 0 and shape[0] != sample.frames:
            return f"{extension} has {shape[0]} frames, its json says {sample.frames}"
    for extension, crc in sample.crc.items():
        _, length = sample.members.get(extension, (0, 0))
        if extension in sample.members and len(crc) != 4 * math.ceil(length / BLOCK_BYTES):
            return f"{extension} has {length} bytes, its checksums are for another length"
    return ""
