"""Measure the stages of curation, compare decoding with PyAV, and compare two actors of a stage with one.

Actors are compared in two stages: tracking, the slowest stage of curation, and encoding, the stage of precomputation.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import av

from xactor.audio.encoder import LogMelEncoder
from xactor.media import read_span
from xactor.rates import FPS
from xactor.render import MotionEncoder
from xactor_platform.bulk.pipeline import Pipeline, Step
from xactor_platform.bulk.pool import Pool
from xactor_platform.bulk.stage import BatchStage
from xactor_platform.curation.curation_config import CurationConfig, Gates
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.lips import NO_SYNCNET, Sync
from xactor_platform.curation.messages import Piece
from xactor_platform.curation.probe import Probe
from xactor_platform.curation.recognise import Recognise, installed_identity
from xactor_platform.curation.scan import Scan, pieces_of
from xactor_platform.curation.track import Track
from xactor_platform.curation.video_files import list_videos
from xactor_platform.curation.write import Write
from xactor_platform.data.index_file import load_index
from xactor_platform.precompute.shard_encoder import ShardEncoder, ShardJob
from xactor_platform.storage.location import Location

# Bounds that every clip passes, so that all stages work on every clip.
_OPEN_GATES = Gates(
    min_crop_px=32,
    max_blur=1,
    max_occluded=1,
    max_outside=1,
    min_lips=0,
    min_speech_db=0,
    min_confidence=-1e9,
)


def bench_stages(
    folder: str, scratch: Path, syncnet: str, size_px: int
) -> tuple[list[dict[str, Any]], list[Piece]]:
    """Measure how many hours of video each stage processes in one hour of CPU time. The stages run in this process.

    Args:
        folder: Folder of videos.
        scratch: Folder for the files that the stages write.
        syncnet: Folder or file of a SyncNet, or `none` to leave out the stage `sync`.
        size_px: Side of the face crops, in pixels.

    Returns:
        The rows, one for each stage and one for all stages together; and the pieces into which the first two stages cut
        the videos.
    """
    config = CurationConfig()
    max_s = config.bounds.max_s
    probe = Probe.make(
        max_input_bytes=config.max_input_bytes, max_pixels=config.bounds.max_pixels, max_s=max_s
    )
    scan = Scan.make(max_s=max_s)
    # Seconds of CPU time, and seconds of video that were processed, by stage.
    cpu_s: dict[str, float] = {}
    video_s: dict[str, float] = {}

    def timed(stage: str, seconds_of: Callable[[Any], float], work: Callable[[], Any]) -> Any:
        """Do a stage's work and return its result. Add the work's CPU time and its seconds of video to the sums.

        Args:
            stage: Name of the stage.
            seconds_of: Returns the seconds of video that the work processed, given the result.
            work: Does the work and returns the result.
        """
        begun = time.process_time()
        result = work()
        cpu_s[stage] = cpu_s.get(stage, 0.0) + time.process_time() - begun
        video_s[stage] = video_s.get(stage, 0.0) + seconds_of(result)
        return result

    def length_s(pieces: list[Piece]) -> float:
        return sum(piece.end - piece.first for piece in pieces) / FPS

    pieces: list[Piece] = []
    for video in list_videos(folder)[0]:
        (probed,) = timed("probe", lambda result: result[0].facts.seconds, lambda video=video: probe(video))
        seconds = probed.facts.seconds
        scanned = timed(
            "scan", lambda _, seconds=seconds: seconds, lambda probed=probed: scan((probed, None))
        )
        pieces += pieces_of(probed, *scanned)
    later = {
        "track": Track.make(),
        "cut": Cut.make(gates=_OPEN_GATES, size_px=size_px),
        "sync": Sync.make(syncnet=syncnet, min_confidence=-1e9, device="cpu"),
        "recognise": Recognise.make(identity=installed_identity(config.identity)),
    }
    finished = pieces
    for stage, work in later.items():
        if stage != "sync" or syncnet != NO_SYNCNET:
            finished = [
                timed(stage, length_s, lambda piece=piece, work=work: work(piece))[0] for piece in finished
            ]
    write = Write.make(folder=str(scratch))
    for piece in finished:
        timed("write", lambda _, piece=piece: length_s([piece]), lambda piece=piece: write(piece))
    rows = [
        {"stage": stage, "cpu_s": cpu_s[stage], "hours_per_core_hour": video_s[stage] / cpu_s[stage]}
        for stage in cpu_s
    ]
    core_hours_per_hour = sum(row["cpu_s"] / video_s[row["stage"]] for row in rows)
    total = {
        "stage": "all",
        "cpu_s": sum(cpu_s.values()),
        "hours_per_core_hour": 1 / core_hours_per_hour,
    }
    return [*rows, total], pieces


def bench_decoding(path: Path, rounds: int) -> dict[str, float]:
    """Compare `read_span` with PyAV's own decoding to RGB arrays, in turn, on one thread.

    Args:
        path: The video to decode.
        rounds: Number of times that each of the two decodes the whole video.

    Returns:
        The frames per second of CPU time of `pyav` and of `read_span`, as medians over the rounds, and the median of
        the rounds' `ratio`, `read_span` over `pyav`.
    """

    def decode_with_pyav() -> int:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            return sum(
                1 for frame in container.decode(video=0) if frame.to_ndarray(format="rgb24") is not None
            )

    def decode_with_read_span() -> int:
        return sum(1 for _ in read_span(path, fps=fps))

    with av.open(str(path)) as container:
        # With the video's own rate, `read_span` returns all frames, as PyAV does.
        fps = float(container.streams.video[0].average_rate or FPS)
    rates: dict[str, list[float]] = {"pyav": [], "read_span": []}
    for _ in range(rounds):
        for name, decode in (("pyav", decode_with_pyav), ("read_span", decode_with_read_span)):
            begun = time.process_time()
            frames = decode()
            rates[name].append(frames / (time.process_time() - begun))
    medians = {name: median(values) for name, values in rates.items()}
    pairs = zip(rates["read_span"], rates["pyav"], strict=True)
    return {**medians, "ratio": median(ours / theirs for ours, theirs in pairs)}


def bench_tracking(pieces: Sequence[Piece], scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure how many seconds of video one actor and two actors track per second. Tracking is the slowest stage.

    Args:
        pieces: Pieces of video. They are shortened to the length of the shortest one, and used in turn.
        scratch: Folder for the files that the actors write.
        count: Number of pieces that each run tracks.
        rounds: Number of runs with each number of actors.

    Returns:
        The rates of `_compare_actors`.

    Raises:
        ValueError: `count` is too small.
    """
    frames = min(piece.end - piece.first for piece in pieces)
    equal_pieces = [replace(piece, end=piece.first + frames) for piece in pieces]
    inputs = [equal_pieces[n % len(equal_pieces)] for n in range(count)]
    arguments = {"output": str(scratch), "timeout_factor": 60, "memory_gib": 4}
    return _compare_actors(Track, arguments, lambda: inputs, frames / FPS, rounds)[0]


def bench_encoding(videos: str, scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure how many seconds of video one actor and two actors of precomputation encode per second.

    The motion encoder takes pictures of 64 px and has random weights. The actors encode the shortest clip of a corpus
    repeatedly, and write a shard each time.

    Args:
        videos: Folder of the corpus's video shards.
        scratch: Folder for the encoders and for the shards that the actors write.
        count: Number of shards that each run writes.
        rounds: Number of runs with each number of actors.

    Returns:
        The rates of `_compare_actors`, and as `waits` the share of the time in which the encoders waited for pictures.

    Raises:
        ValueError: `count` is too small, or the clip cannot be encoded.
    """
    index = load_index(videos)
    clip = index.subset(index.frames.argsort(kind="stable")[:1])
    MotionEncoder(image_size=64, channels=(32, 64, 128)).save_pretrained(scratch / "motion_encoder")
    LogMelEncoder().save_pretrained(scratch / "audio_encoder")
    numbers = itertools.count()

    def make_jobs() -> list[ShardJob]:
        """Return jobs that write into new folders."""
        folders = [scratch / f"encoded-{next(numbers)}" for _ in range(count)]
        for folder in folders:
            folder.mkdir()
        return [ShardJob(index=clip, place=Location.parse(str(folder))) for folder in folders]

    encoders = {"motion": str(scratch / "motion_encoder"), "sound": str(scratch / "audio_encoder")}
    arguments = {**encoders, "decoders": 1, "device": "cpu"}
    clip_s = int(clip.frames[0]) / FPS
    rates, fates = _compare_actors(ShardEncoder, arguments, make_jobs, clip_s, rounds)
    if failed := [fate.error for fate in fates if fate.error]:
        raise ValueError(f"{videos}: {failed[0]}")
    spent_s = {
        name: sum(fate.stage_s[name] for fate in fates) for name in ("motion", "sound", "write", "wait")
    }
    return {**rates, "waits": spent_s["wait"] / sum(spent_s.values())}


def _compare_actors(
    stage: type[BatchStage],
    arguments: dict[str, Any],
    make_inputs: Callable[[], Sequence[Any]],
    input_s: float,
    rounds: int,
) -> tuple[dict[str, float], list[Any]]:
    """Measure how many seconds of video one actor and two actors of a stage process per second, in turn.

    Every actor computes on one thread, and all inputs have the same length. The measured time starts at the actors'
    first results, because the first inputs wait until the models are loaded. With two actors the last result is left
    out, because one actor may process the last input while the other actor has no work.

    Args:
        stage: The stage.
        arguments: Arguments of the stage's actors.
        make_inputs: Returns the inputs of one run, at least 4.
        input_s: Seconds of video in each input.
        rounds: Number of runs with each number of actors.

    Returns:
        The rates and the results. The rates are `one` and `two`, the medians in seconds of video per second, and
        `ratio`, the median of the rounds' ratios of two actors to one. The results are those of the stage in all runs.

    Raises:
        ValueError: There are fewer than 4 inputs.
    """
    # The rates of all rounds, by number of actors.
    rates: dict[int, list[float]] = {1: [], 2: []}
    results: list[Any] = []
    for _ in range(rounds):
        for actors, round_rates in rates.items():
            inputs = make_inputs()
            if len(inputs) < 4:
                raise ValueError(f"pieces must be >= 4, got {len(inputs)}")
            # With half a CPU each, two actors also start on a cluster with one CPU.
            pool = Pool(min=actors, max=actors, cpus=0.5)
            step = Step(stage=stage, pool=pool, arguments=arguments, max_in_flight=2)
            result_times = []
            for result in Pipeline(steps=[step], start_timeout_s=600).run(inputs):
                result_times.append(time.perf_counter())
                results.append(result)
            # With two actors, leave out the first result and the last one.
            counted = result_times[actors - 1 : len(result_times) - actors + 1]
            round_rates.append((len(counted) - 1) * input_s / (counted[-1] - counted[0]))
    pairs = zip(rates[2], rates[1], strict=True)
    medians = {
        "one": median(rates[1]),
        "two": median(rates[2]),
        "ratio": median(two / one for two, one in pairs),
    }
    return medians, results
