"""Encode video shards to motion shards, which hold latents of the pictures and features of the sound.

Motion shards are the data of stage 2, the training of the motion model.

    <parent>/shards/<split>-000000.tar ...   one shard for each video shard, with the same keys
    <parent>/motion_encoder/                 the encoder that made the latents, absent if control tracks made them
    <parent>/audio_encoder/                  the encoder that made the features

A control track holds numbers that describe a face's motion in each frame of a clip. Latents can be computed from it
instead of from the pictures.

Each actor writes one shard at a time, atomically. If a run is interrupted, the same call continues it: the call writes
only the shards that are missing or lack samples.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.rates import FPS
from xactor.render import MotionEncoder
from xactor_platform.bulk.bill import Bill
from xactor_platform.bulk.pipeline import Pipeline, Step
from xactor_platform.bulk.pool import Pool
from xactor_platform.bulk.tally import Tally
from xactor_platform.data.index import CONTROLS, BadSample, Index, LatentSource
from xactor_platform.data.index_file import INDEX_NAME, delete_index, load_index
from xactor_platform.data.shard_names import is_shard
from xactor_platform.precompute.encoder_folder import save_encoder
from xactor_platform.precompute.shard_encoder import STAGES, ShardEncoder, ShardJob, ShardResult
from xactor_platform.storage.location import Location, local_copy, sibling_uri

MOTION_ENCODER, AUDIO_ENCODER = "motion_encoder", "audio_encoder"
# The default pool.
ACTORS = Pool(max=64, cpus=1)
# Maximum number of bad samples that an error message names.
_MAX_NAMED = 5
FRAMES_ENCODED, CLIPS = "xactor_precompute_frames_total", "xactor_precompute_clips_total"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """Hold the result of a precomputation."""

    shards: str
    """Folder or URI of the motion shards."""
    bad: list[BadSample]
    """Samples that were left out."""
    bill: Bill
    """Time and work of this call. `figures` holds the number of shards `written` now, of shards `kept` from earlier
    runs, and of `clips` and `frames` encoded now. `stage_s` counts seconds of threads, not of actors."""

    def summary(self) -> list[str]:
        """Return the bill in lines for people to read."""
        bill, figures = self.bill, self.bill.figures
        hours, rate = figures["frames"] / FPS / 3600, figures["frames"] / max(bill.wall_s, 1e-9)
        return [
            f"{figures['written']} shards written, {figures['kept']} already existed, "
            f"{len(self.bad)} samples left out: {self.shards}",
            f"{figures['clips']} clips, {hours:.3f} hours, in {bill.wall_s:,.1f} s: {rate:,.0f} frames/s",
            bill.stages_line("threads' time"),
        ]


def precompute(
    videos: str,
    model: str | Path,
    output: str,
    *,
    latents: LatentSource = "encoder",
    audio_encoder: str | Path | None = None,
    pool: Pool = ACTORS,
    max_bad_fraction: float = 0.0,
    start_timeout_s: int = 900,
    progress: Callable[[str], None] = lambda line: None,
) -> PrecomputeResult:
    """Write motion shards and their index, with actors on the Ray cluster that this process has joined.

    Args:
        videos: folder or URI of video shards.
        model: folder or URI that holds `motion_encoder/`. It is not read if control tracks make the latents.
        output: folder or URI of the motion shards. The encoders are copied next to it, but never over other encoders.
        latents: source of the latents: `encoder` (the motion encoder) or `controls` (the clips' control tracks).
        audio_encoder: local folder of an audio encoder. None means log-mel features, which need no weights.
        pool: pool of actors. Each actor decodes on as many threads as it has CPUs. On a cluster with GPUs each actor
            gets one GPU and its share of the CPUs, unless the pool sets the GPUs.
        max_bad_fraction: largest fraction of unusable samples. These samples are left out and logged.
        start_timeout_s: seconds to wait for nodes.
        progress: is called with a line for each shard.

    Raises:
        ValueError, FileNotFoundError: an argument or a file is invalid, or more samples than allowed are unusable. If
            too many samples are unusable, the error is raised after all shards are written.
        OSError: shards failed, or no nodes became available. The same call continues the run.
    """
    begun = time.monotonic()
    index = load_index(videos, max_bad_fraction=max_bad_fraction)
    if "mp4" not in index.offset:
        raise ValueError(f"{videos}: holds latents, not videos")
    place = Location.parse(output)
    if (place.filesystem, place.path) == (index.location.filesystem, index.location.path):
        raise ValueError(f"{output}: the latents need another folder than their videos")
    tracks = index.having(CONTROLS)
    if latents == "controls" and tracks != index.samples:
        raise ValueError(
            f"{videos}: latents from controls need {CONTROLS} in all samples, got {tracks} of {index.samples}"
        )
    _place_encoders(model if latents == "encoder" else None, audio_encoder, output)
    _prepare_output(place, output, index, videos)
    jobs = []
    for number in range(len(index.shard_names)):
        rows = np.flatnonzero(index.shard == number)
        if len(rows):
            jobs.append(ShardJob(index=index.subset(rows), place=place))
    tally = _tally(len(jobs), begun)
    results = _encode(jobs, _pipeline(output, latents, _with_gpus(pool), start_timeout_s), tally, progress)
    _check_results(results, jobs, output)
    bad = [*index.bad, *(sample for result in results for sample in result.bad)]
    _check_bad(bad, index, max_bad_fraction)
    load_index(output)
    written = sum(result.written for result in results)
    bill = tally.bill(
        written=written,
        kept=len(results) - written,
        clips=int(tally.sum(CLIPS, status="done")),
        frames=int(tally.sum(FRAMES_ENCODED)),
    )
    return PrecomputeResult(shards=output, bad=bad, bill=bill)


def _tally(shards: int, begun: float) -> Tally:
    return Tally(
        total=shards,
        stages=STAGES,
        counters={
            FRAMES_ENCODED: ("Frames encoded.", ()),
            CLIPS: ("Clips by outcome.", ("status",)),
        },
        stage_seconds="xactor_precompute_stage_seconds_total",
        items_left="xactor_precompute_shards_left",
        seconds_left="xactor_precompute_seconds_left",
        begun=begun,
    )


def _place_encoders(model: str | Path | None, audio_encoder: str | Path | None, output: str) -> None:
    """Copy the encoders next to the output, and print which audio encoder it is.

    `model` is None if no motion encoder is used.

    Raises:
        ValueError, FileNotFoundError: an encoder is missing or invalid, or the target holds another encoder.
    """
    sound = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    kind = type(sound).__name__.removesuffix("Encoder")
    print(
        f"{output}: {kind} audio features, [{sound.layers}, {sound.width}] per frame, "
        + (f"made by {audio_encoder}" if audio_encoder else "because no --audio-encoder is given"),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        sound.save_pretrained(scratch)
        if model is not None:
            _place_motion_encoder(model, output)
        save_encoder(Path(scratch), sibling_uri(output, AUDIO_ENCODER))


def _place_motion_encoder(model: str | Path, output: str) -> None:
    """Copy the model's motion encoder next to the output, after a check that it can be loaded."""
    with local_copy(model) as folder:
        trained = Path(folder) / MOTION_ENCODER
        if not (trained / "config.json").exists():
            raise FileNotFoundError(f"{model}: holds no {MOTION_ENCODER}/config.json")
        # Load the encoder only to report an invalid one here, before any actor starts.
        MotionEncoder.from_pretrained(trained, low_cpu_mem_usage=False)
        save_encoder(trained, sibling_uri(output, MOTION_ENCODER))


def _prepare_output(place: Location, output: str, index: Index, videos: str) -> None:
    """Create the output's folder and delete its index.

    Raises:
        ValueError: the folder holds shards of other videos.
    """
    place.filesystem.create_dir(place.path, recursive=True)
    existing = place.sizes()
    foreign = sorted({name for name in existing if is_shard(name)} - set(index.shard_names))
    if foreign:
        raise ValueError(f"{output}: holds shards that {videos} does not have, the first {foreign[0]}")
    if INDEX_NAME in existing:
        # Rewritten shards may have the same sizes and times as before, so the old index might look valid. A new index
        # is made at the end of the run.
        delete_index(place)


def _pipeline(output: str, latents: LatentSource, pool: Pool, start_timeout_s: int) -> Pipeline:
    arguments = {
        "motion": sibling_uri(output, MOTION_ENCODER) if latents == "encoder" else None,
        "sound": sibling_uri(output, AUDIO_ENCODER),
        "decoders": max(int(pool.cpus), 1),
        "device": "cuda" if pool.gpus else "cpu",
    }
    step = Step(stage=ShardEncoder, pool=pool, arguments=arguments, gpus=pool.gpus, max_in_flight=1)
    return Pipeline(steps=[step], start_timeout_s=start_timeout_s)


def _encode(
    jobs: list[ShardJob], pipeline: Pipeline, tally: Tally, progress: Callable[[str], None]
) -> list[ShardResult]:
    """Run all jobs, count their results in the tally, and return the results.

    A job that was lost with its actor has no result.
    """
    tally.start_pace(len(jobs))
    results: list[ShardResult] = []
    for result in pipeline.run(jobs):
        results.append(result)
        tally.add_seconds(result.stage_s)
        tally.add(FRAMES_ENCODED, result.frames)
        tally.add(CLIPS, result.clips, status="done")
        tally.add(CLIPS, len(result.bad), status="bad")
        tally.finish_item(done=result.written)
        outcome = result.error or ("written" if result.written else "already exists")
        progress(f"{len(results)}/{len(jobs)} shards: {result.shard} {outcome}")
    return results


def _with_gpus(pool: Pool) -> Pool:
    """Give each actor one GPU and an equal share of the CPUs, if the cluster has GPUs and the pool sets none."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if pool.gpus or not gpus:
        return pool
    return replace(pool, gpus=1, cpus=max(pool.cpus, int(resources.get("CPU", 0)) // gpus))


def _check_results(results: list[ShardResult], jobs: list[ShardJob], output: str) -> None:
    """Raise OSError if a shard failed or was lost."""
    if failed := [result for result in results if result.error]:
        raise OSError(
            f"{output}: {len(failed)} of {len(jobs)} shards failed, {failed[0].shard}: {failed[0].error}"
        )
    seen = {result.shard for result in results}
    if lost := [job.name for job in jobs if job.name not in seen]:
        raise OSError(
            f"{output}: {len(lost)} of {len(jobs)} shards were lost with their workers, after one retry "
            f"each, for example {lost[0]}"
        )


def _check_bad(bad: list[BadSample], index: Index, max_bad_fraction: float) -> None:
    """Log the bad samples.

    Raises:
        ValueError: their fraction of all samples is larger than `max_bad_fraction`.
    """
    samples = index.samples + len(index.bad)
    named = "; ".join(map(str, bad[:_MAX_NAMED]))
    if len(bad) > _MAX_NAMED:
        named += f"; and {len(bad) - _MAX_NAMED} more"
    if len(bad) > max_bad_fraction * samples:
        raise ValueError(
            f"{index.location.uri}: {len(bad)} of {samples} samples are unusable, the bound (max_bad_fraction) is "
            f"{max_bad_fraction:g}: {named}"
        )
    if bad:
        logger.warning("%s: %d unusable samples are left out: %s", index.location.uri, len(bad), named)
