"""Video shards to stage 2's motion shards: a motion encoder's latents of the pictures, and features of the sound.

    <parent>/shards/<split>-000000.tar ...   shard for shard and key for key as the videos
    <parent>/motion_encoder/                 what made the latents
    <parent>/audio_encoder/                  what made the audio features

One Ray task makes one shard, whole or absent, so the same call again does what is missing.
"""

import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from pyarrow import fs
from ray.util.metrics import Counter, Gauge

from xactor.audio import AudioEncoder, LogMelEncoder, load_audio_encoder
from xactor.audio.windows import FPS, SAMPLES_PER_FRAME
from xactor.media import read_audio, read_frames
from xactor.render import MotionEncoder
from xactor_platform.index import INDEX_NAME, BadSample, Index, load_index
from xactor_platform.location import Location, beside
from xactor_platform.pools import Spent
from xactor_platform.scan import scan_shard
from xactor_platform.shards import Shard, encode_members

MOTION_ENCODER, AUDIO_ENCODER = "motion_encoder", "audio_encoder"
_TRUTH = "controls.npy"  # where the videos hold it, so do the latents: reports read off them what was meant
_BATCH = 64  # frames that are decoded and encoded at once, so that a clip of any length takes little memory
_NAMED = 5
STAGES = ("read", "decode", "motion", "sound", "write")
T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """What became of the shards.

    Attributes:
        written, kept: shards: made now, and there already.
        bad: the samples that had to be left out.
        clips, frames: that were encoded now. stage_s: seconds of tasks' time for it, by stage. wall_s: of the run.
    """

    shards: str
    written: int
    kept: int
    bad: list[BadSample]
    clips: int = 0
    frames: int = 0
    stage_s: Spent = field(default_factory=dict)
    wall_s: float = 0.0

    def bill(self) -> list[str]:
        """For people."""
        stages = "  ".join(f"{name} {self.stage_s.get(name, 0.0):,.1f}" for name in STAGES)
        hours, rate = self.frames / FPS / 3600, self.frames / max(self.wall_s, 1e-9)
        return [
            f"{self.clips} clips, {hours:.3f} hours, in {self.wall_s:,.1f} s: {rate:,.0f} frames/s",
            f"{sum(self.stage_s.values()):,.1f} s of tasks' time, by stage: {stages}",
        ]


@dataclass(frozen=True, kw_only=True)
class ShardFate:
    """What became of one shard: written now, or there already. See `Precomputed`."""

    shard: str
    written: bool
    bad: list[BadSample]
    clips: int = 0
    frames: int = 0
    spent: Spent = field(default_factory=dict)


def precompute(
    videos: str,
    model: str | Path,
    output: str,
    *,
    audio_encoder: str | Path | None = None,
    max_bad_fraction: float = 0.0,
    progress: Callable[[str], None] = lambda line: None,
) -> Precomputed:
    """Makes motion shards and their index in the folder `output`, by tasks on the Ray cluster that is joined.

    Args:
        videos: folder or URI of video shards.
        model: folder or URI that holds `motion_encoder/`.
        output: folder or URI; both encoders come beside it, where others' are never replaced.
        audio_encoder: a local folder that holds one; log-mel without weights where it is not given.
        max_bad_fraction: how much of the videos may be unusable; it is left out and logged.

    Raises:
        ValueError, FileNotFoundError: what cannot work; more than the bound is unusable, once all else is written.
    """
    begun = time.monotonic()
    index = load_index(videos, max_bad_fraction=max_bad_fraction)
    if "mp4" not in index.offset:
        raise ValueError(f"{videos}: holds latents, not videos")
    place = Location.parse(output)
    if (place.filesystem, place.path) == (index.location.filesystem, index.location.path):
        raise ValueError(f"{output}: the latents need another folder than their videos")
    sound = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    with _local(model) as folder, tempfile.TemporaryDirectory() as scratch:
        trained = Path(folder) / MOTION_ENCODER
        if not (trained / "config.json").exists():
            raise FileNotFoundError(f"{model}: holds no {MOTION_ENCODER}/config.json")
        motion = MotionEncoder.from_pretrained(trained, low_cpu_mem_usage=False)
        sound.save_pretrained(scratch)
        _place(trained, beside(output, MOTION_ENCODER))
        _place(Path(scratch), beside(output, AUDIO_ENCODER))

    place.filesystem.create_dir(place.path, recursive=True)
    there = place.sizes()
    strange = sorted({name for name in there if name.endswith(".tar")} - set(index.shard_names))
    if strange:
        raise ValueError(f"{output}: holds shards that {videos} does not have, the first {strange[0]}")
    if INDEX_NAME in there:
        place.delete(
            INDEX_NAME
        )  # made again at the end: shards that are written anew may have the same sizes
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus)(encode_shard)
    encoders = ray.put(motion), ray.put(sound)
    rows = [
        own for number in range(len(index.shard_names)) if len(own := np.flatnonzero(index.shard == number))
    ]
    waiting = [task.remote(index.subset(own), place, *encoders) for own in rows]
    fates: list[ShardFate] = []
    meters = Meters(len(rows))
    while waiting:
        (done,), waiting = ray.wait(waiting)
        fates.append(ray.get(done))
        meters.add(fates[-1])
        was = "written" if fates[-1].written else "there already"
        progress(f"{len(fates)}/{len(rows)} shards: {fates[-1].shard} {was}")
    bad = [*index.bad, *(sample for fate in fates for sample in fate.bad)]
    _check(bad, index, max_bad_fraction)
    load_index(output)
    written = sum(fate.written for fate in fates)
    return Precomputed(
        shards=output,
        written=written,
        kept=len(fates) - written,
        bad=bad,
        clips=sum(fate.clips for fate in fates),
        frames=sum(fate.frames for fate in fates),
        stage_s={name: sum(fate.spent.get(name, 0.0) for fate in fates) for name in STAGES},
        wall_s=time.monotonic() - begun,
    )


class Meters:
    """What a run has done so far, through Ray's metrics."""

    def __init__(self, shards: int):
        self._frames = Counter("xactor_precompute_frames_total", "Frames encoded.")
        self._clips = Counter("xactor_precompute_clips_total", "Clips by what became of them.", ("status",))
        self._stage_s = Counter(
            "xactor_precompute_stage_seconds_total", "Seconds of tasks' time.", ("stage",)
        )
        self._left = Gauge("xactor_precompute_shards_left", "Shards that are not finished.")
        self._shards = shards
        self._left.set(shards)

    def add(self, fate: ShardFate) -> None:
        self._shards -= 1
        self._left.set(self._shards)
        if fate.frames:
            self._frames.inc(fate.frames)
        for status, count in (("done", fate.clips), ("bad", len(fate.bad))):
            if count:
                self._clips.inc(count, {"status": status})
        for name, seconds in fate.spent.items():
            if seconds > 0:
                self._stage_s.inc(seconds, {"stage": name})


def encode_shard(index: Index, place: Location, motion: MotionEncoder, sound: AudioEncoder) -> ShardFate:
    """Writes the motion shard of one video shard, whose samples `index` holds, unless it is there."""
    name = index.shard_names[index.shard[0]]
    if _is_there(place, name, index):
        return ShardFate(shard=name, written=False, bad=[])
    torch.set_num_threads(1)  # as many tasks as cores
    if torch.cuda.is_available():
        motion, sound = motion.to("cuda"), sound.to("cuda")  # type: ignore[arg-type]
    bad, watch, frames = [], Watch(), 0
    with Shard(place, name) as shard:
        for row in range(index.samples):
            key = str(index.key[row])
            try:
                with watch.taking("read"):
                    video, meta = index.read(row, "mp4"), index.read_meta(row)
                members = encode_clip(video, meta, motion, sound, watch)
                if _TRUTH in index.offset and index.offset[_TRUTH][row] >= 0:
                    members[_TRUTH] = np.load(io.BytesIO(index.read(row, _TRUTH)), allow_pickle=False)
                with watch.taking("write"):
                    shard.write(key, encode_members(key, members))
                frames += members["json"]["frames"]
            except ValueError as error:
                bad.append(BadSample(key, name, str(error)))
    clips = index.samples - len(bad)
    return ShardFate(shard=name, written=True, bad=bad, clips=clips, frames=frames, spent=watch.spent)


class Watch:
    """What the stages of a task have taken so far.

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


def encode_clip(
    video: bytes,
    meta: Mapping[str, Any],
    motion: MotionEncoder,
    sound: AudioEncoder,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """One video sample's members as a motion sample: latents float16 [T, D], features float16 [T, L, F], json.

    The pictures count: sound that ends sooner or later is filled with silence or cut.

    Raises:
        ValueError: it cannot be decoded, has no sound, or not the pictures that its json says.
    """
    watch = watch or Watch()
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(video)
        file.flush()
        try:
            latents = []
            for piece in watch.pieces("decode", _pieces(read_frames(file.name), _BATCH)):
                with watch.taking("motion"):
                    latents.append(motion.encode(piece, batch=_BATCH))
            with watch.taking("decode"):
                samples = read_audio(file.name)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{file.name}: ")) from error
    z = torch.cat(latents).numpy()  # [T, D]
    if len(z) != meta["frames"]:
        raise ValueError(f"mp4 has {len(z)} frames, its json says {meta['frames']}")
    spoken = np.zeros(len(z) * SAMPLES_PER_FRAME, np.float32)
    spoken[: len(samples)] = samples[: len(spoken)]
    with watch.taking("sound"):
        features = sound.features(spoken).astype(np.float16)
    return {
        "motion.npy": z.astype(np.float16),
        "audio.npy": features,
        "json": _meta(meta),
    }


def _pieces(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Frames [S, S, 3] in arrays [at most `size`, S, S, 3]."""
    while piece := list(islice(frames, size)):
        yield np.stack(piece)


def _is_there(place: Location, name: str, wanted: Index) -> bool:
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
            if found.reason or json.loads(file.read_at(length, offset)) != _meta(wanted.read_meta(row)):
                return False
    return True


def _meta(video: Mapping[str, Any]) -> dict[str, Any]:
    return {**video, "motion": "encoder"}


def _check(bad: list[BadSample], index: Index, most: float) -> None:
    samples = index.samples + len(index.bad)
    named = "; ".join(map(str, bad[:_NAMED])) + (
        f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    )
    if len(bad) > most * samples:
        raise ValueError(
            f"{index.location.uri}: {len(bad)} of {samples} samples are unusable, the bound (max_bad_fraction) is "
            f"{most:g}: {named}"
        )
    if bad:
        logger.warning("%s: %d unusable samples are left out: %s", index.location.uri, len(bad), named)


def _local(folder: str | Path):
    """The folder on this machine, fetched where it is a URI."""
    if "://" not in str(folder):
        return nullcontext(folder)
    place = Location.parse(str(folder))
    scratch = tempfile.TemporaryDirectory()
    fs.copy_files(place.path, scratch.name, source_filesystem=place.filesystem)
    return scratch


def _place(folder: Path, target: str) -> None:
    """A local folder's files to a location. ValueError where others lie there: what they made would lose its maker."""
    place = Location.parse(target)
    place.filesystem.create_dir(place.path, recursive=True)
    there = place.sizes()
    for file in sorted(folder.iterdir()):
        if file.name not in there:
            with place.replace(file.name) as stream:
                stream.write(file.read_bytes())
            continue
        with place.open(file.name) as stream:
            same = there[file.name] == file.stat().st_size and stream.read() == file.read_bytes()
        if not same:
            raise ValueError(
                f"{target}: holds another {file.name} than is used now: choose another output, or remove it with "
                f"the shards beside it"
            )
