"""Encode video shards to motion shards, one after another. This is the only stage of precomputation.

A motion shard holds motion latents and audio features of clips, the data on which the motion model is trained. Threads
decode the next clips while the encoders work. The encoders wait only if all decoding threads together are slower than
the encoders.
"""

import json
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor

from xactor.audio.encoder import load_audio_encoder
from xactor.controls import CONTROL_COUNT, embed_controls
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.media import read_audio, read_frames
from xactor.origin import AUDIO, LATENTS
from xactor.rates import SAMPLES_PER_FRAME
from xactor.render import MotionEncoder
from xactor_platform.bulk.message import Message, StageSeconds, add_seconds
from xactor_platform.bulk.stage import BatchStage
from xactor_platform.data.checksums import FIELD
from xactor_platform.data.index import CONTROLS, BadSample, Index, LatentSource
from xactor_platform.data.npy import read_numbers
from xactor_platform.data.scan import scan_shard
from xactor_platform.data.shards import Shard, encode_members
from xactor_platform.storage.location import Location, local_copy

# "wait" is the time in which the encoders wait for pictures. If it is long, more CPUs should decode.
STAGES = ("read", "decode", "motion", "sound", "write", "wait")

BATCH = 64
"""Number of frames that are encoded at once. They may belong to several clips."""

# Number of blocks of BATCH frames that are decoded ahead in each clip. It bounds the memory that a long clip takes.
_BLOCKS_AHEAD = 2
# Seconds after which a waiting decoder checks whether its reader has stopped.
_POLL_S = 0.2
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardResult(Message):
    """Report the result of one shard. `stage_s` adds up the seconds of several threads."""

    finished: ClassVar[bool] = True

    shard: str
    """Name of the shard."""
    written: bool
    """Whether the shard was written now. False if it already existed or failed."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that were left out."""
    clips: int = 0
    """Clips that were encoded now."""
    frames: int = 0
    """Frames that were encoded now."""
    error: str | None = None
    """Reason why the shard was not made, in one line. None if the shard exists now."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Ask for one motion shard."""

    index: Index
    """Index of the videos, which all belong to one video shard."""
    place: Location
    """Folder of the motion shards."""

    @property
    def name(self) -> str:
        """Return the name of the motion shard, which is also the name of the video shard."""
        return self.index.shard_names[self.index.shard[0]]


class ShardEncoder(BatchStage):
    """Encode video shards to motion shards.

    Args:
        motion: folder or URI of the motion encoder. None makes the latents from the clips' control tracks, numbers that
            describe the face's motion in each frame.
        sound: folder or URI of the audio encoder.
        decoders: number of threads that decode.
        device: cpu or cuda.
    """

    name = "encode"

    def __init__(self, *, motion: str | None, sound: str, decoders: int, device: str):
        if device == "cpu":
            # There are as many actors as cores, so torch uses one thread in each actor.
            torch.set_num_threads(1)
        self._motion: MotionEncoder | None = None
        if motion is not None:
            with local_copy(motion) as folder:
                self._motion = MotionEncoder.from_pretrained(folder, low_cpu_mem_usage=False).to(device)  # pyright: ignore
        with local_copy(sound) as folder:
            self._sound = load_audio_encoder(folder).to(device)
        made_by: LatentSource = "controls" if motion is None else "encoder"
        # Entries that the json of each sample gets.
        self._made = {
            "motion": made_by,
            LATENTS: CONTROLS_ORIGIN if self._motion is None else self._motion.latent_origin,
            AUDIO: self._sound.origin,
        }
        self._decoders = decoders
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def run_batch(self, messages: list[ShardJob]) -> Iterator[ShardResult]:
        """Make shards one after another. Each thread measures the seconds that it spends in each of STAGES."""
        for job in messages:
            try:
                yield self.make(job)
            except Exception as error:
                yield self.failed(job, error)

    def failed(self, message: ShardJob, error: Exception) -> ShardResult:
        """Return the result of a shard that failed."""
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        return ShardResult(shard=message.name, written=False, error=kind + reason)

    def make(self, job: ShardJob) -> ShardResult:
        """Write a motion shard atomically, unless it already exists."""
        index, name = job.index, job.name
        if shard_exists(job.place, name, index, self._made):
            return ShardResult(shard=name, written=False)
        bad, watch, frames = [], Stopwatch(), 0
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
                with watch.timing("write"):
                    shard.write(clip.key, encode_members(clip.key, members))
                frames += len(members["motion.npy"])
        clips_made = index.samples - len(bad)
        return ShardResult(
            shard=name, written=True, bad=bad, clips=clips_made, frames=frames, stage_s=watch.stage_s
        )

    def _decoded(self, index: Index) -> Generator["_Clip"]:
        """Yield clips in order while threads decode them. Meanwhile, threads already decode the clips that follow."""
        ahead: deque[_Clip] = deque()
        rows, ended = iter(range(index.samples)), threading.Event()
        # One clip more than there are threads, so that no thread is idle while the caller processes the first clip.
        max_ahead = self._decoders + 1
        try:
            while True:
                for row in islice(rows, max_ahead - len(ahead)):
                    clip = _Clip(str(index.key[row]), ended, pictures=self._motion is not None)
                    clip.rest = self._threads.submit(clip.decode, index, row)
                    ahead.append(clip)
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            ended.set()

    def _encoded(self, clips: Iterator["_Clip"], watch: "Stopwatch") -> Generator["_Clip"]:
        """Yield clips in order, each after its last picture is encoded. A batch may hold pictures of several clips."""
        # Blocks of pictures that are not encoded yet, each with its clip. All pictures have the same size.
        waiting: deque[tuple[_Clip, np.ndarray]] = deque()
        unfinished: deque[_Clip] = deque()

        def encode_batch() -> None:
            room = BATCH
            taken: list[tuple[_Clip, np.ndarray]] = []
            while waiting and room:
                clip, block = waiting.popleft()
                if len(block) > room:
                    # The rest of the block goes into the next batch.
                    waiting.appendleft((clip, block[room:]))
                    block = block[:room]
                taken.append((clip, block))
                room -= len(block)
            assert self._motion is not None
            with watch.timing("motion"):
                z = self._motion.encode(np.concatenate([block for _, block in taken]), batch=BATCH)
            latents_of_blocks = z.split([len(block) for _, block in taken])
            for (clip, _), latents in zip(taken, latents_of_blocks, strict=True):
                clip.latents.append(latents)
                clip.waiting -= len(latents)

        for clip in clips:
            unfinished.append(clip)
            for block in watch.timed("wait", clip.blocks()):
                has_other_size = bool(waiting) and waiting[0][1].shape[1:] != block.shape[1:]
                if has_other_size:
                    encode_batch()
                waiting.append((clip, block))
                clip.waiting += len(block)
                while sum(len(block) for _, block in waiting) >= BATCH:
                    encode_batch()
            while unfinished and not unfinished[0].waiting:
                yield unfinished.popleft()
        if waiting:
            encode_batch()
        yield from unfinished

    def _members(self, clip: "_Clip", watch: "Stopwatch") -> dict[str, Any]:
        """Return a clip's motion sample: latents float16 [T, D], features float16 [T, L, F] and json, by member name.

        If the clip has a control track, the sample holds the track too.

        The sound is cut to the length of the pictures, or extended to it with silence.

        Raises:
            ValueError: the clip cannot be decoded, has no sound, or its number of frames is not the one in its json.
        """
        samples, meta, controls = clip.rest.result()
        if self._motion is None:
            assert controls is not None
            source, z = CONTROLS, embed_controls(controls)  # [T, D]
        else:
            source, z = "mp4", torch.cat(clip.latents).numpy()  # [T, D]
        if len(z) != meta["frames"]:
            raise ValueError(f"{source} has {len(z)} frames, its json says {meta['frames']}")
        sound = np.zeros(len(z) * SAMPLES_PER_FRAME, np.float32)
        sound[: len(samples)] = samples[: len(sound)]
        with watch.timing("sound"):
            features = self._sound.features(sound).astype(np.float16)
        members = {"motion.npy": z.astype(np.float16), "audio.npy": features, "json": {**meta, **self._made}}
        return members if controls is None else {**members, CONTROLS: controls}


class _Clip:
    """Decode a clip in a thread, a few blocks of pictures ahead of the thread that encodes them (the reader).

    Args:
        key: key of the clip.
        ended: is set when the reader has stopped.
        pictures: whether the reader needs pictures.

    Attributes:
        rest: future of the clip's other data: the sound float32 [N], the json, and the control track or None. The
            future raises ValueError if the clip cannot be decoded.
        latents: latents of the pictures that are encoded so far.
        waiting: number of pictures that the reader has taken and not encoded yet.
    """

    rest: "Future[tuple[np.ndarray, dict[str, Any], np.ndarray | None]]"

    def __init__(self, key: str, ended: threading.Event, *, pictures: bool):
        self.key, self.watch = key, Stopwatch()
        self.latents: list[Tensor] = []
        self.waiting = 0
        self._ready: queue.Queue[np.ndarray | None] = queue.Queue(_BLOCKS_AHEAD)
        self._ended, self._pictures = ended, pictures

    def decode(self, index: Index, row: int) -> tuple[np.ndarray, dict[str, Any], np.ndarray | None]:
        """Decode the clip in a thread. Return the result of the future `rest`."""
        try:
            with self.watch.timing("read"):
                video, meta, controls = index.read(row, "mp4"), index.read_meta(row), None
                if CONTROLS in index.offset and index.offset[CONTROLS][row] >= 0:
                    controls = read_numbers(CONTROLS, index.read(row, CONTROLS), (None, CONTROL_COUNT))
            with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
                file.write(video)
                file.flush()
                try:
                    frames = read_frames(file.name) if self._pictures else iter(())
                    for block in self.watch.timed("decode", _blocks(frames, BATCH)):
                        if not self._put(block):
                            break
                    with self.watch.timing("decode"):
                        return read_audio(file.name), meta, controls
                except ValueError as error:
                    raise ValueError(str(error).removeprefix(f"{file.name}: ")) from error
        finally:
            self._put(None)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the pictures in blocks, uint8 [at most BATCH, S, S, 3]."""
        while (block := self._ready.get()) is not None:
            yield block

    def _put(self, block: np.ndarray | None) -> bool:
        """Wait for room and pass a block to the reader; None marks the end. Return False if the reader has stopped."""
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._ready.put(block, timeout=_POLL_S)
                return True
        return False


class Stopwatch:
    """Measure the seconds that one thread spends in each stage.

    Attributes:
        stage_s: seconds by stage.
    """

    def __init__(self):
        self.stage_s: StageSeconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time of the `with` block to the stage's seconds."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stage_s[stage] += time.perf_counter() - begun

    def timed(self, stage: str, source: Iterator[T]) -> Iterator[T]:
        """Yield the items of a source. Add the time that the source takes to the stage's seconds."""
        while True:
            with self.timing(stage):
                item = next(source, None)
            if item is None:
                return
            yield item

    def add(self, other: "Stopwatch") -> None:
        """Add the seconds of another thread that has ended."""
        self.stage_s = add_seconds(self.stage_s, other.stage_s)


def shard_exists(place: Location, name: str, wanted: Index, made: Mapping[str, str]) -> bool:
    """Return whether a shard exists, is complete, and was made from exactly the wanted clips in the same way.

    The stored json of each sample is compared with the json that the sample would get now. Only the origins may be
    absent, because earlier versions did not record them.

    Args:
        place: folder of the motion shards.
        name: name of the shard.
        wanted: index of the clips.
        made: entries that the json of a motion sample has in addition to those of its clip.
    """
    info = place.filesystem.get_file_info(f"{place.path}/{name}")
    if info.type == fs.FileType.NotFound:
        return False
    scan = scan_shard(place, name, info.size)
    if scan.broken or [found.key for found in scan.samples] != list(wanted.key):
        return False
    origins = {kind: made[kind] for kind in (LATENTS, AUDIO)}
    with place.open(name) as file:
        for row, found in enumerate(scan.samples):
            offset, length = found.members["json"]
            if found.reason:
                return False
            stored = json.loads(file.read_at(length, offset))
            # `read_meta` has no checksums either.
            stored.pop(FIELD, None)
            if {**origins, **stored} != {**wanted.read_meta(row), **made}:
                return False
    return True


def _blocks(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield frames [S, S, 3] in blocks [at most `size`, S, S, 3]."""
    while block := list(islice(frames, size)):
        yield np.stack(block)
