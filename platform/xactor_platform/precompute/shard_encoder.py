"""A worker of precomputation: it makes one motion shard after another, by its own encoders.

While they work, threads decode what comes next: the encoders wait only where all of the threads together are slower.
"""

import io
import json
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs
from torch import Tensor

from xactor.audio.encoder import load_audio_encoder
from xactor.media import read_audio, read_frames
from xactor.rates import SAMPLES_PER_FRAME
from xactor.render import MotionEncoder
from xactor_platform.bulk.pool import Spent, added, nothing, pack, unpack
from xactor_platform.data.index import BadSample, Index
from xactor_platform.data.scan import scan_shard
from xactor_platform.data.shards import Shard, encode_members
from xactor_platform.storage.location import Location

# wait: of the encoders for pictures; then more CPUs should decode.
STAGES = ("read", "decode", "motion", "sound", "write", "wait")
TRUTH = "controls.npy"  # where the videos hold it, so do the latents: reports read off them what was meant
BATCH = 64  # frames that are encoded at once, of one clip or several
_PIECES = 2  # of BATCH frames, that are decoded ahead of a clip: one of any length takes little memory
_LOOK_S = 0.2
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardFate:
    """What became of one shard.

    Attributes:
        written: now; otherwise it was there already, or `error` says in one line why it is not.
        bad: samples that had to be left out. spent: seconds, of several threads, by stage.
    """

    shard: str
    written: bool
    bad: list[BadSample] = field(default_factory=list)
    clips: int = 0
    frames: int = 0
    spent: Spent = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to make at a place: of the videos in `index`, all of one video shard."""

    index: Index
    place: Location

    @property
    def name(self) -> str:
        return self.index.shard_names[self.index.shard[0]]


class ShardEncoder:
    """An actor of Ray Data's: shards to make in, their fates out.

    Args:
        motion, sound: folders or URIs of both encoders. decoders: threads that decode.
        device: cpu or cuda.
    """

    def __init__(self, *, motion: str, sound: str, decoders: int, device: str):
        if device == "cpu":
            torch.set_num_threads(1)  # as many actors as cores
        with local(motion) as folder:
            self._motion = MotionEncoder.from_pretrained(folder, low_cpu_mem_usage=False).to(device)  # pyright: ignore
        with local(sound) as folder:
            self._sound = load_audio_encoder(folder).to(device)
        self._decoders = decoders
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for job in unpack(table):
            yield pack(self.fate(job))
        if not table.num_rows:
            yield nothing()

    def fate(self, job: ShardJob) -> ShardFate:
        """As `make`; what goes wrong is said in the fate."""
        try:
            return self.make(job)
        except Exception as error:
            why = " ".join(str(error).split())
            kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            return ShardFate(shard=job.name, written=False, error=kind + why)

    def make(self, job: ShardJob) -> ShardFate:
        """Writes the motion shard of one video shard, whole or not at all, unless it is there."""
        index, name = job.index, job.name
        if is_there(job.place, name, index):
            return ShardFate(shard=name, written=False)
        bad, watch, frames = [], Watch(), 0
        with (
            Shard(job.place, name) as shard,
            closing(self._decoded(index)) as decoded,
            closing(self._encoded(decoded, watch)) as clips,
        ):
            for clip in clips:
                watch.add(clip.watch)
                try:
                    members = self._members(clip, watch)
                except ValueError as error:
                    bad.append(BadSample(clip.key, name, str(error)))
                    continue
                with watch.taking("write"):
                    shard.write(clip.key, encode_members(clip.key, members))
                frames += len(members["motion.npy"])
        clips_made = index.samples - len(bad)
        return ShardFate(
            shard=name, written=True, bad=bad, clips=clips_made, frames=frames, spent=watch.spent
        )

    def _decoded(self, index: Index) -> Generator["_Clip"]:
        """Clips in order, as they are begun; those after one are decoded while it is worked on."""
        ahead: deque[_Clip] = deque()
        rows, ended = iter(range(index.samples)), threading.Event()
        try:
            while True:
                for row in islice(rows, self._decoders + 1 - len(ahead)):
                    clip = _Clip(str(index.key[row]), ended)
                    clip.rest = self._threads.submit(clip.decode, index, row)
                    ahead.append(clip)
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            ended.set()

    def _encoded(self, clips: Iterator["_Clip"], watch: "Watch") -> Generator["_Clip"]:
        """Clips in order, when all of their pictures are encoded: batches reach over the ends of clips."""
        waiting: deque[tuple[_Clip, np.ndarray]] = deque()  # pictures of one size
        unfinished: deque[_Clip] = deque()

        def encode(most: int) -> None:
            taken: list[tuple[_Clip, np.ndarray]] = []
            while waiting and most:
                clip, piece = waiting.popleft()
                if len(piece) > most:
                    waiting.appendleft((clip, piece[most:]))
                    piece = piece[:most]
                taken.append((clip, piece))
                most -= len(piece)
            with watch.taking("motion"):
                z = self._motion.encode(np.concatenate([piece for _, piece in taken]), batch=BATCH)
            for (clip, _), part in zip(taken, z.split([len(piece) for _, piece in taken]), strict=True):
                clip.latents.append(part)
                clip.waiting -= len(part)

        for clip in clips:
            unfinished.append(clip)
            for piece in watch.pieces("wait", clip.pieces()):
                if waiting and waiting[0][1].shape[1:] != piece.shape[1:]:
                    encode(BATCH)
                waiting.append((clip, piece))
                clip.waiting += len(piece)
                while sum(len(piece) for _, piece in waiting) >= BATCH:
                    encode(BATCH)
            while unfinished and not unfinished[0].waiting:
                yield unfinished.popleft()
        if waiting:
            encode(BATCH)
        yield from unfinished

    def _members(self, clip: "_Clip", watch: "Watch") -> dict[str, Any]:
        """A clip's motion sample: latents float16 [T, D], features float16 [T, L, F], json.

        The pictures count: sound that ends sooner or later is filled with silence or cut.

        Raises:
            ValueError: it could not be decoded, has no sound, or not the pictures that its json says.
        """
        samples, meta, truth = clip.rest.result()
        z = torch.cat(clip.latents).numpy()  # [T, D]
        if len(z) != meta["frames"]:
            raise ValueError(f"mp4 has {len(z)} frames, its json says {meta['frames']}")
        spoken = np.zeros(len(z) * SAMPLES_PER_FRAME, np.float32)
        spoken[: len(samples)] = samples[: len(spoken)]
        with watch.taking("sound"):
            features = self._sound.features(spoken).astype(np.float16)
        members = {"motion.npy": z.astype(np.float16), "audio.npy": features, "json": latent_meta(meta)}
        return members if truth is None else {**members, TRUTH: truth}


class _Clip:
    """A clip that is decoded in a thread, a few pieces ahead of who takes them.

    Attributes:
        rest: what comes after the pictures: its sound, its json and its truth, or ValueError.
        latents: so far. waiting: pictures that have no latents yet.
    """

    rest: "Future[tuple[np.ndarray, dict[str, Any], np.ndarray | None]]"

    def __init__(self, key: str, ended: threading.Event):
        self.key, self.watch = key, Watch()
        self.latents: list[Tensor] = []
        self.waiting = 0
        self._ready: queue.Queue[np.ndarray | None] = queue.Queue(_PIECES)
        self._ended = ended

    def decode(self, index: Index, row: int) -> tuple[np.ndarray, dict[str, Any], np.ndarray | None]:
        """In a thread."""
        try:
            with self.watch.taking("read"):
                video, meta, truth = index.read(row, "mp4"), index.read_meta(row), None
                if TRUTH in index.offset and index.offset[TRUTH][row] >= 0:
                    truth = np.load(io.BytesIO(index.read(row, TRUTH)), allow_pickle=False)
            with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
                file.write(video)
                file.flush()
                try:
                    for piece in self.watch.pieces("decode", _pieces(read_frames(file.name), BATCH)):
                        if not self._put(piece):
                            break
                    with self.watch.taking("decode"):
                        return read_audio(file.name), meta, truth
                except ValueError as error:
                    raise ValueError(str(error).removeprefix(f"{file.name}: ")) from error
        finally:
            self._put(None)

    def pieces(self) -> Iterator[np.ndarray]:
        """Its pictures, uint8 [at most BATCH, S, S, 3]."""
        while (piece := self._ready.get()) is not None:
            yield piece

    def _put(self, piece: np.ndarray | None) -> bool:
        """Waits for room. False: nobody takes pieces any more."""
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._ready.put(piece, timeout=_LOOK_S)
                return True
        return False


class Watch:
    """What the stages have taken so far, in one thread.

    Attributes:
        spent: seconds by stage.
    """

    def __init__(self):
        self.spent: Spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def taking(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent[stage] += time.perf_counter() - begun

    def pieces(self, stage: str, source: Iterator[T]) -> Iterator[T]:
        """What comes from a source, the time it takes counted as the stage's."""
        while True:
            with self.taking(stage):
                piece = next(source, None)
            if piece is None:
                return
            yield piece

    def add(self, other: "Watch") -> None:
        """Another thread's, when that is done."""
        self.spent = added(self.spent, other.spent)


def latent_meta(video: Mapping[str, Any]) -> dict[str, Any]:
    """A latent sample's json, of its video's."""
    return {**video, "motion": "encoder"}


def is_there(place: Location, name: str, wanted: Index) -> bool:
    """Whether a shard is there, whole, and of these very clips, as their json tells."""
    info = place.filesystem.get_file_info(f"{place.path}/{name}")
    if info.type == fs.FileType.NotFound:
        return False
    scan = scan_shard(place, name, info.size)
    if scan.broken or [found.key for found in scan.samples] != list(wanted.key):
        return False
    with place.open(name) as file:
        for row, found in enumerate(scan.samples):
            offset, length = found.members["json"]
            if found.reason or json.loads(file.read_at(length, offset)) != latent_meta(wanted.read_meta(row)):
                return False
    return True


def local(folder: str | Path):
    """A context: the folder on this machine, fetched where it is a URI."""
    if "://" not in str(folder):
        return nullcontext(folder)
    place = Location.parse(str(folder))
    scratch = tempfile.TemporaryDirectory()
    fs.copy_files(place.path, scratch.name, source_filesystem=place.filesystem)
    return scratch


def _pieces(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Frames [S, S, 3] in arrays [at most `size`, S, S, 3]."""
    while piece := list(islice(frames, size)):
        yield np.stack(piece)
