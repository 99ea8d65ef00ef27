"""Video shards to stage 2's motion shards: a motion encoder's latents of the pictures, and features of the sound.

    <parent>/shards/<split>-000000.tar ...   shard for shard and key for key as the videos
    <parent>/motion_encoder/                 what made the latents
    <parent>/audio_encoder/                  what made the audio features

Actors make a shard each, whole or absent, so the same call again does what is missing.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import ray
import ray.data
from ray.util.metrics import Counter, Gauge

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.rates import FPS
from xactor.render import MotionEncoder
from xactor_platform.bulk.pool import Pool, Spent, pack, piecewise, results, tried_twice
from xactor_platform.data.index import INDEX_NAME, BadSample, Index, load_index
from xactor_platform.precompute.shard_encoder import STAGES, ShardEncoder, ShardFate, ShardJob, local
from xactor_platform.storage.location import Location, sibling_uri

MOTION_ENCODER, AUDIO_ENCODER = "motion_encoder", "audio_encoder"
ACTORS = Pool(max=64, cpus=1)
_NAMED = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """What became of the shards.

    Attributes:
        written, kept: shards: made now, and there already.
        bad: the samples that had to be left out.
        clips, frames: that were encoded now. stage_s: seconds of threads' time for it, by stage. wall_s: of the run.
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
            f"{sum(self.stage_s.values()):,.1f} s of threads' time, by stage: {stages}",
        ]


def precompute(
    videos: str,
    model: str | Path,
    output: str,
    *,
    audio_encoder: str | Path | None = None,
    pool: Pool = ACTORS,
    max_bad_fraction: float = 0.0,
    start_timeout_s: int = 900,
    progress: Callable[[str], None] = lambda line: None,
) -> Precomputed:
    """Makes motion shards and their index in the folder `output`, by actors on the Ray cluster that is joined.

    Args:
        videos: folder or URI of video shards.
        model: folder or URI that holds `motion_encoder/`.
        output: folder or URI; both encoders come beside it, where others' are never replaced.
        audio_encoder: a local folder that holds one; log-mel without weights where it is not given.
        pool: the actors. Each decodes on as many threads as it has CPUs. On a cluster with GPUs each has one, and its
            share of the CPUs, unless the pool says how many GPUs.
        max_bad_fraction: how much of the videos may be unusable; it is left out and logged.
        start_timeout_s: how long to wait for nodes.

    Raises:
        ValueError, FileNotFoundError: what cannot work; more than the bound is unusable, once all else is written.
        OSError: shards that could not be made, once all others are: the same call goes on. No nodes came.
    """
    begun = time.monotonic()
    index = load_index(videos, max_bad_fraction=max_bad_fraction)
    if "mp4" not in index.offset:
        raise ValueError(f"{videos}: holds latents, not videos")
    place = Location.parse(output)
    if (place.filesystem, place.path) == (index.location.filesystem, index.location.path):
        raise ValueError(f"{output}: the latents need another folder than their videos")
    sound = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    with local(model) as folder, tempfile.TemporaryDirectory() as scratch:
        trained = Path(folder) / MOTION_ENCODER
        if not (trained / "config.json").exists():
            raise FileNotFoundError(f"{model}: holds no {MOTION_ENCODER}/config.json")
        MotionEncoder.from_pretrained(trained, low_cpu_mem_usage=False)  # here, where it fails in one line
        sound.save_pretrained(scratch)
        _place(trained, sibling_uri(output, MOTION_ENCODER))
        _place(Path(scratch), sibling_uri(output, AUDIO_ENCODER))

    place.filesystem.create_dir(place.path, recursive=True)
    there = place.sizes()
    strange = sorted({name for name in there if name.endswith(".tar")} - set(index.shard_names))
    if strange:
        raise ValueError(f"{output}: holds shards that {videos} does not have, the first {strange[0]}")
    if INDEX_NAME in there:
        place.delete(
            INDEX_NAME
        )  # made again at the end: shards that are written anew may have the same sizes
    rows = [
        own for number in range(len(index.shard_names)) if len(own := np.flatnonzero(index.shard == number))
    ]
    jobs = [ShardJob(index=index.subset(own), place=place) for own in rows]
    meters = Meters(len(jobs))
    fates: list[ShardFate] = []
    for fate in results(_encoding(jobs, output, _with_gpus(pool), start_timeout_s)):
        fates.append(fate)
        meters.add(fate)
        was = fate.error or ("written" if fate.written else "there already")
        progress(f"{len(fates)}/{len(jobs)} shards: {fate.shard} {was}")
    _check_fates(fates, jobs, output)
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
            "xactor_precompute_stage_seconds_total", "Seconds of threads' time.", ("stage",)
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


def _encoding(jobs: list[ShardJob], output: str, pool: Pool, start_timeout_s: int) -> ray.data.Dataset:
    """Jobs to fates."""
    with piecewise(start_timeout_s):
        return ray.data.from_arrow([pack(job) for job in jobs]).map_batches(
            ShardEncoder,  # pyright: ignore
            fn_constructor_kwargs={
                "motion": sibling_uri(output, MOTION_ENCODER),
                "sound": sibling_uri(output, AUDIO_ENCODER),
                "decoders": max(int(pool.cpus), 1),
                "device": "cuda" if pool.gpus else "cpu",
            },
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min, max_size=pool.max, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            ray_remote_args_fn=tried_twice,
        )


def _with_gpus(pool: Pool) -> Pool:
    """With what the cluster has now."""
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    if pool.gpus or not gpus:
        return pool
    return replace(pool, gpus=1, cpus=max(pool.cpus, int(have.get("CPU", 0)) // gpus))


def _check_fates(fates: list[ShardFate], jobs: list[ShardJob], output: str) -> None:
    """OSError: of a shard that could not be made, or was lost."""
    if failed := [fate for fate in fates if fate.error]:
        raise OSError(
            f"{output}: {len(failed)} of {len(jobs)} shards failed, {failed[0].shard}: {failed[0].error}"
        )
    seen = {fate.shard for fate in fates}
    if lost := [job.name for job in jobs if job.name not in seen]:
        raise OSError(
            f"{output}: {len(lost)} of {len(jobs)} shards were lost with their workers, twice each: {lost[0]} is one"
        )


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


def _place(folder: Path, target: str) -> None:
    """A local folder's files to a location. ValueError where others lie there: what they made would lose its maker."""
    place = Location.parse(target)
    place.filesystem.create_dir(place.path, recursive=True)
    there = place.sizes()
    for file in sorted(folder.iterdir()):
        if file.name not in there:
            with place.atomic_write(file.name) as stream:
                stream.write(file.read_bytes())
            continue
        with place.open(file.name) as stream:
            same = there[file.name] == file.stat().st_size and stream.read() == file.read_bytes()
        if not same:
            raise ValueError(
                f"{target}: holds another {file.name} than is used now: choose another output, or remove it with "
                f"the shards beside it"
            )
