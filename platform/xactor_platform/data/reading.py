"""Read planned micro-batches of latents from shards by byte ranges, without Ray and without torch.

In this file a `Request` names one micro-batch, and a read is one access to the storage.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from xactor_platform.data.checksums import blocks_around, differs
from xactor_platform.data.index import CorpusShape, Index
from xactor_platform.data.npy import parse_npy_header
from xactor_platform.data.plan import MicroBatch
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import StorageUnavailable, with_retries

# File extensions of a sample's two arrays in a shard, and the names of their data in `Raw`.
MEMBERS = ("motion.npy", "audio.npy")
ARRAYS = ("motion", "audio")
# Maximum number of bytes between two ranges that one read covers. Reading these bytes takes less time than a second
# read.
MERGE_BYTES = 64 << 10
# Maximum number of bytes of one read.
MAX_READ_BYTES = 32 << 20
# Number of concurrent reads from an object store, which takes 20 to 100 ms to answer one read.
REMOTE_READS = 16


@dataclass(frozen=True, eq=False)
class Request:
    """Name what to read for one micro-batch. A request is small, because it does not refer to the index."""

    keys: list[str]
    """Key of each sample's clip, [B]."""
    shards: list[str]
    """Name of the shard of each clip, [B]. Empty for a filler: nothing is read for it."""
    starts: np.ndarray
    """First frame of each sample in its clip, int64 [B]."""
    frames: np.ndarray
    """Length of each sample in frames, int64 [B]."""
    clip_frames: np.ndarray
    """Length of each clip in frames, int64 [B]."""
    data: np.ndarray
    """Position in the shard of the first byte after the .npy header of each array, in the order of MEMBERS, int64
    [B, 2]."""
    header: np.ndarray
    """Length of that header in bytes, int64 [B, 2]."""
    crc: list[tuple[bytes, ...]]
    """Checksums of each array, [B][2]. Empty if unknown."""


@dataclass(frozen=True, eq=False)
class Raw:
    """Hold the bytes of a micro-batch, as Ray Data transports them."""

    arrays: dict[str, np.ndarray]
    """Bytes of each array by name, the samples one after another, flat uint8. For latents the names are ARRAYS."""
    bad: list[tuple[int, str]]
    """Bad samples: the position of each in the micro-batch, and the reason why it is bad."""


@dataclass(slots=True, eq=False)
class _Range:
    """Map a range of a shard's bytes to the memory that it is read into."""

    shard: str
    offset: int
    """First byte in the shard."""
    target: np.ndarray
    """Memory to fill, uint8."""
    sample: tuple[int, int]
    """Number of the request, and position of the sample in the request."""
    dtype: str
    """Type of the array."""
    shape: tuple[int, ...]
    """Shape of the array of the complete clip."""
    header: int
    """Length in bytes of the .npy header before the range. The header is read and checked too. 0 if the range does not
    follow a header."""
    member: str
    """Extension of the member that holds the range."""
    span: tuple[int, int]
    """First byte of the member in the shard, and its length in bytes."""
    crc: bytes
    """Checksums of the member. Empty if unknown."""
    begin: int = field(init=False)
    """First byte to read: that of the range, of the header before it, or of the first block with a checksum."""
    end: int = field(init=False)
    """Byte after the last one to read."""

    def __post_init__(self) -> None:
        self.begin, self.end = self.offset - self.header, self.offset + len(self.target)
        if self.crc:
            first, length = self.span
            begin, end = blocks_around(self.begin - first, self.end - first, length)
            self.begin, self.end = first + begin, first + end


def make_request(index: Index, micro_batch: MicroBatch) -> Request:
    """Return what to read for a micro-batch of latents."""
    rows = micro_batch.row
    header = np.stack([index.header[member][rows] for member in MEMBERS], 1).astype(np.int64)
    return Request(
        keys=index.key[rows].tolist(),
        shards=[] if micro_batch.is_filler else [index.shard_names[s] for s in index.shard[rows]],
        starts=micro_batch.start,
        frames=micro_batch.frames,
        clip_frames=index.frames[rows],
        data=np.stack([index.offset[member][rows] for member in MEMBERS], 1) + header,
        header=header,
        crc=[tuple(index.crc_of(member, row) for member in MEMBERS) for row in rows],
    )


def read_raw(location: Location, shape: CorpusShape, requests: Sequence[Request]) -> list[Raw]:
    """Read several micro-batches together. One read covers neighbouring ranges of a shard.

    A sample is bad if it cannot be read, is not what was indexed, or holds NaN or infinity. `Raw.bad` lists such a
    sample, and its bytes are zero.

    Raises:
        StorageUnavailable: the storage fails. No sample is listed as bad for this reason.
    """
    raws, ranges = [], []
    for number, request in enumerate(requests):
        raw, wanted = _lay_out(request, number, shape)
        raws.append(raw)
        ranges += wanted
    runs = list(_merge(sorted(ranges, key=lambda r: (r.shard, r.begin))))
    if location.is_local:
        problems = [problem for run in runs for problem in _read_run(location, run)]
    else:
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            problems_of_runs = pool.map(lambda run: _read_run(location, run), runs)
            problems = list(chain.from_iterable(problems_of_runs))
    reasons = dict(problems)
    # If one array of a sample is bad, set both arrays to zero.
    for r in ranges:
        if r.sample in reasons:
            r.target[:] = 0
    for (number, position), reason in sorted(reasons.items()):
        raws[number].bad.append((position, reason))
    return raws


def _lay_out(request: Request, number: int, shape: CorpusShape) -> tuple[Raw, list[_Range]]:
    """Allocate memory for a micro-batch's bytes. Return the memory, and the ranges to read into it."""
    buffers, ranges = [], []
    for member, (dtype, frame_shape) in enumerate(shape.members):
        frame_bytes = int(np.prod(frame_shape)) * np.dtype(dtype).itemsize
        ends = (np.cumsum(request.frames) * frame_bytes).tolist()
        begins = [0, *ends]
        offsets = (request.data[:, member] + request.starts * frame_bytes).tolist()
        buffer = np.empty(ends[-1] if request.shards else 0, np.uint8)
        for i, shard in enumerate(request.shards):
            # The header lies just before a clip's first frame, so it is read with samples that start there. Checking it
            # detects a shard that has changed.
            header = int(request.header[i, member]) if request.starts[i] == 0 else 0
            clip_shape = (int(request.clip_frames[i]), *frame_shape)
            target = buffer[begins[i] : ends[i]]
            begin = int(request.data[i, member] - request.header[i, member])
            length = int(request.header[i, member] + request.clip_frames[i] * frame_bytes)
            ranges.append(
                _Range(
                    shard=shard,
                    offset=offsets[i],
                    target=target,
                    sample=(number, i),
                    dtype=dtype,
                    shape=clip_shape,
                    header=header,
                    member=MEMBERS[member],
                    span=(begin, length),
                    crc=request.crc[i][member],
                )
            )
        buffers.append(buffer)
    return Raw(dict(zip(ARRAYS, buffers, strict=True)), []), ranges


def _merge(ranges: Sequence[_Range]) -> Iterator[list[_Range]]:
    """Group ranges, which are sorted by shard and offset, into runs. A run is the ranges that one read covers."""
    run: list[_Range] = []
    end = 0
    for r in ranges:
        is_near = run and r.shard == run[0].shard and r.begin - end <= MERGE_BYTES
        fits = is_near and r.end - run[0].begin <= MAX_READ_BYTES
        if run and not fits:
            yield run
            run, end = [], 0
        run.append(r)
        end = max(end, r.end)
    if run:
        yield run


def _read_run(location: Location, run: list[_Range]) -> list[tuple[tuple[int, int], str]]:
    """Read the ranges of a run into their memory. Return (sample, reason) for each range that cannot be used."""
    begin, end = run[0].begin, max(r.end for r in run)

    def read() -> np.ndarray:
        with location.open(run[0].shard) as file:
            return np.frombuffer(file.read_at(end - begin, begin), np.uint8)

    try:
        data = with_retries(read, f"{location.uri}/{run[0].shard}")
    except StorageUnavailable:
        # The storage failed, so the samples may be good.
        raise
    except OSError as error:
        return [(r.sample, f"cannot be read: {error}") for r in run]
    problems = []
    for r in run:
        content = data[r.offset - begin : r.offset - begin + len(r.target)]
        reason = _fault(r, data[r.begin - begin : r.end - begin])
        if reason:
            problems.append((r.sample, reason))
        else:
            r.target[:] = content
    return problems


def _fault(r: _Range, data: np.ndarray) -> str:
    """Return what is wrong with the bytes that were read for a range, or an empty string."""
    if len(data) < r.end - r.begin:
        return f"ends at byte {r.begin + len(data)}, the index says {r.end}"
    if r.header:
        try:
            _, dtype, _, shape = parse_npy_header(data[r.offset - r.header - r.begin :][: r.header].tobytes())
        except ValueError as error:
            return f"is not the array that was indexed ({error})"
        if (dtype, shape) != (np.dtype(r.dtype).str, r.shape):
            return f"is {dtype} {list(shape)}, the index says {r.dtype} {list(r.shape)}"
    if not _is_finite(data[r.offset - r.begin :][: len(r.target)], r.dtype):
        return "holds NaN or infinity"
    return f"{r.member} differs from its checksum" if differs(data, r.crc, r.begin - r.span[0]) else ""


def _is_finite(data: np.ndarray, dtype: str) -> bool:
    """Return whether all values are finite. Comparing bits is ten times as fast as `np.isfinite` on float16."""
    # A float is NaN or infinite if its bits without the sign, read as an integer, are >= the bits of infinity.
    if dtype == "float16":
        return bool((data.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool((data.view(np.uint32) & 0x7FFFFFFF).max() < 0x7F800000)
