"""Reads planned micro-batches from shards by byte ranges. Knows nothing of Ray, and needs no torch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from xactor_platform.data.index import CorpusShape, Index
from xactor_platform.data.plan import MicroBatch
from xactor_platform.data.scan import parse_npy_header
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import StorageUnavailable, with_retries

MEMBERS = ("motion.npy", "audio.npy")
PARTS = ("motion", "audio")
MERGE_BYTES = 64 << 10  # reading a smaller gap costs less than another request
RUN_BYTES = 32 << 20  # most of one request
REMOTE_READS = 16  # requests in flight of one task; an object store answers each in 20 to 100 ms


@dataclass(frozen=True, eq=False)
class Request:
    """What to read for one micro-batch; small, and free of the index. Arrays are [B], or [B, 2] by member."""

    keys: list[str]
    shards: list[str]  # empty for a filler, which keeps its samples but asks for none of their bytes
    starts: np.ndarray  # int64
    frames: np.ndarray  # int64
    clip_frames: np.ndarray  # int64
    data: np.ndarray  # int64 [B, 2], where the arrays' data begins in the shard
    header: np.ndarray  # int64 [B, 2], bytes of .npy header before it


@dataclass(frozen=True, eq=False)
class Raw:
    """A micro-batch as it travels: bytes by name (of latents `motion` and `audio`), samples one after another."""

    parts: dict[str, np.ndarray]  # uint8, flat
    bad: list[tuple[int, str]]  # place in the batch, reason


@dataclass(slots=True, eq=False)
class _Range:
    """Bytes of a shard and where they go. With `header`, that many bytes before them are checked too."""

    shard: str
    offset: int
    target: np.ndarray  # uint8, what to fill
    sample: tuple[int, int]  # number of the request, place in it
    dtype: str
    shape: tuple[int, ...]  # of the whole array
    header: int

    @property
    def begin(self) -> int:
        return self.offset - self.header

    @property
    def end(self) -> int:
        return self.offset + len(self.target)


def make_request(index: Index, micro_batch: MicroBatch) -> Request:
    rows = micro_batch.row
    header = np.stack([index.header[m][rows] for m in MEMBERS], 1).astype(np.int64)
    return Request(
        keys=index.key[rows].tolist(),
        shards=[] if micro_batch.is_filler else [index.shard_names[s] for s in index.shard[rows]],
        starts=micro_batch.start,
        frames=micro_batch.frames,
        clip_frames=index.frames[rows],
        data=np.stack([index.offset[m][rows] for m in MEMBERS], 1) + header,
        header=header,
    )


def read_raw(location: Location, shape: CorpusShape, requests: Sequence[Request]) -> list[Raw]:
    """Reads several micro-batches at once: neighbours in a shard are one request, wherever they belong.

    A sample that cannot be read, is not what was indexed, or holds NaN or infinity, is named in `bad` and
    its bytes are zero. StorageUnavailable where the storage fails: that makes no sample bad.
    """
    raws, ranges = [], []
    for number, request in enumerate(requests):
        raw, wanted = _lay_out(request, number, shape)
        raws.append(raw)
        ranges += wanted
    runs = list(_merge(sorted(ranges, key=lambda r: (r.shard, r.offset))))
    if location.is_local:
        problems = [p for run in runs for p in _read_run(location, run)]
    else:
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            problems = [p for found in pool.map(lambda run: _read_run(location, run), runs) for p in found]
    reasons = dict(problems)
    for r in ranges:
        if r.sample in reasons:
            r.target[:] = 0
    for (number, place), reason in sorted(reasons.items()):
        raws[number].bad.append((place, reason))
    return raws


def _lay_out(request: Request, number: int, shape: CorpusShape) -> tuple[Raw, list[_Range]]:
    """Room for a micro-batch's bytes, and the ranges that fill it."""
    rooms, ranges = [], []
    for m, (dtype, item) in enumerate(shape.members):
        row_bytes = int(np.prod(item)) * np.dtype(dtype).itemsize
        ends = (np.cumsum(request.frames) * row_bytes).tolist()
        begins = [0, *ends]
        offsets = (request.data[:, m] + request.starts * row_bytes).tolist()
        room = np.empty(ends[-1] if request.shards else 0, np.uint8)
        for i, shard in enumerate(request.shards):
            # At a clip's start the header lies right before: see there that the shard is still the same.
            header = int(request.header[i, m]) if request.starts[i] == 0 else 0
            whole = (int(request.clip_frames[i]), *item)
            part = room[begins[i] : ends[i]]
            ranges.append(_Range(shard, offsets[i], part, (number, i), dtype, whole, header))
        rooms.append(room)
    return Raw(dict(zip(PARTS, rooms, strict=True)), []), ranges


def _merge(ranges: Sequence[_Range]) -> Iterator[list[_Range]]:
    """Ranges, sorted by place, in runs that one request reads."""
    run: list[_Range] = []
    end = 0
    for r in ranges:
        near = run and r.shard == run[0].shard and r.begin - end <= MERGE_BYTES
        if run and not (near and r.end - run[0].begin <= RUN_BYTES):
            yield run
            run, end = [], 0
        run.append(r)
        end = max(end, r.end)
    if run:
        yield run


def _read_run(location: Location, run: list[_Range]) -> list[tuple[tuple[int, int], str]]:
    """Fills the ranges of one request. Returns (sample, reason) of those that cannot be used."""
    begin, end = run[0].begin, max(r.end for r in run)

    def read() -> np.ndarray:
        with location.open(run[0].shard) as file:
            return np.frombuffer(file.read_at(end - begin, begin), np.uint8)

    try:
        data = with_retries(read, f"{location.uri}/{run[0].shard}")
    except StorageUnavailable:
        raise  # says nothing of the samples
    except OSError as error:
        return [(r.sample, f"cannot be read: {error}") for r in run]
    problems = []
    for r in run:
        part = data[r.offset - begin : r.end - begin]
        reason = _fault(r, data[r.begin - begin : r.offset - begin], part)
        if reason:
            problems.append((r.sample, reason))
        else:
            r.target[:] = part
    return problems


def _fault(r: _Range, header: np.ndarray, part: np.ndarray) -> str:
    if len(part) < len(r.target):
        return f"ends at byte {r.offset + len(part)}, the index promises {r.end}"
    if r.header:
        try:
            _, dtype, _, shape = parse_npy_header(header.tobytes())
        except (ValueError, SyntaxError, KeyError) as error:
            return f"is not the array that was indexed ({error})"
        if (np.dtype(dtype), shape) != (np.dtype(r.dtype), r.shape):
            return f"is {dtype} {list(shape)}, the index says {r.dtype} {list(r.shape)}"
    return "" if _is_finite(part, r.dtype) else "holds NaN or infinity"


def _is_finite(data: np.ndarray, dtype: str) -> bool:
    """By its bits, ten times as fast as `np.isfinite` on float16: no magnitude reaches infinity's."""
    if dtype == "float16":
        return bool((data.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool((data.view(np.uint32) & 0x7FFFFFFF).max() < 0x7F800000)
