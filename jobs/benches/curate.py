"""Measure curation: each stage's time, decoding against PyAV, and two actors against one; precomputation likewise."""

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
from xactor_platform.curation.scan import Scan, pieces_of
from xactor_platform.curation.track import Track
from xactor_platform.curation.video_files import list_videos
from xactor_platform.curation.write import Write
from xactor_platform.data.index import load_index
from xactor_platform.precompute.shard_encoder import ShardEncoder, ShardJob
from xactor_platform.storage.location import Location

# All stages work on every clip, whatever it is like.
_OPEN = Gates(min_crop_px=32, max_blur=1, max_occluded=1, min_speech_db=0, min_confidence=-1e9)


def bench_stages(
    folder: str, scratch: Path, syncnet: str, size_px: int
) -> tuple[list[dict[str, Any]], list[Piece]]:
    """Measure hours of video for an hour of one core, by stage, in this process.

    Args:
        folder: Folder of videos.
        scratch: Folder for what the stages write.
        syncnet: Folder or file of a SyncNet, or `none`.
        size_px: Side of the face crops, in pixels.

    Returns:
        A row for each stage and one for all, and the pieces that the first two stages made.
    """
    config = CurationConfig()
    max_s = config.bounds.max_s
    probe = Probe.make(
        max_input_bytes=config.max_input_bytes, max_pixels=config.bounds.max_pixels, max_s=max_s
    )
    scan = Scan.make(max_s=max_s)
    spent: dict[str, float] = {}
    looked: dict[str, float] = {}

    def timed(name: str, seconds: Callable[[Any], float], work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        made = work()
        spent[name] = spent.get(name, 0.0) + time.process_time() - begun
        looked[name] = looked.get(name, 0.0) + seconds(made)
        return made

    def length(made: list[Piece]) -> float:
        return sum(piece.end - piece.first for piece in made) / FPS

    pieces: list[Piece] = []
    for video in list_videos(folder)[0]:
        (probed,) = timed("probe", lambda made: made[0].facts.seconds, lambda video=video: probe(video))
        seconds = probed.facts.seconds
        cut = timed("scan", lambda _, seconds=seconds: seconds, lambda probed=probed: scan((probed, None)))
        pieces += pieces_of(probed, *cut)
    later = {
        "track": Track.make(),
        "cut": Cut.make(gates=_OPEN, size_px=size_px),
        "sync": Sync.make(syncnet=syncnet, min_confidence=-1e9, device="cpu"),
    }
    done = pieces
    for name, work in later.items():
        if name != "sync" or syncnet != NO_SYNCNET:
            done = [timed(name, length, lambda piece=piece, work=work: work(piece))[0] for piece in done]
    write = Write.make(folder=str(scratch), held_out=0.0, seed=0)
    for piece in done:
        timed("write", lambda _, piece=piece: length([piece]), lambda piece=piece: write(piece))
    rows = [
        {"stage": name, "cpu_s": spent[name], "hours_per_core_hour": looked[name] / spent[name]}
        for name in spent
    ]
    whole = sum(row["cpu_s"] / looked[row["stage"]] for row in rows)
    return [*rows, {"stage": "all", "cpu_s": sum(spent.values()), "hours_per_core_hour": 1 / whole}], pieces


def bench_decoding(path: Path, rounds: int) -> dict[str, float]:
    """Measure the frames a second of one thread, in turn: PyAV's own loop to RGB arrays, and `read_span`."""

    def alone() -> int:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            return sum(
                1 for frame in container.decode(video=0) if frame.to_ndarray(format="rgb24") is not None
            )

    def ours() -> int:
        return sum(1 for _ in read_span(path, fps=fps))

    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or FPS)  # all frames, as PyAV gives them
    rates: dict[str, list[float]] = {"pyav": [], "read_span": []}
    for _ in range(rounds):
        for name, read in (("pyav", alone), ("read_span", ours)):
            begun = time.process_time()
            frames = read()
            rates[name].append(frames / (time.process_time() - begun))
    found = {name: median(some) for name, some in rates.items()}
    pairs = zip(rates["read_span"], rates["pyav"], strict=True)
    return {**found, "ratio": median(a / b for a, b in pairs)}


def bench_tracking(pieces: Sequence[Piece], scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds of video a second that one and two actors track; tracking is the slowest stage.

    All pieces are cut to the length of the shortest.

    Raises:
        ValueError: There are too few pieces.
    """
    frames = min(piece.end - piece.first for piece in pieces)
    alike = [replace(piece, end=piece.first + frames) for piece in pieces]
    works = [alike[n % len(alike)] for n in range(count)]
    arguments = {"output": str(scratch), "timeout_factor": 60, "memory_gib": 4}
    return _one_and_two(Track, arguments, lambda: works, frames / FPS, rounds)[0]


def bench_encoding(videos: str, scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds of video a second that one and two actors of precomputation encode.

    The motion encoder has 64 px and random weights. It encodes one clip again and again, a shard each time. `waits` is
    the share of the encoders' time in which they had no pictures.

    Raises:
        ValueError: There are too few shards, or a clip cannot be encoded.
    """
    index = load_index(videos)
    clip = index.subset(index.frames.argsort(kind="stable")[:1])
    MotionEncoder(image_size=64, channels=(32, 64, 128)).save_pretrained(scratch / "motion_encoder")
    LogMelEncoder().save_pretrained(scratch / "audio_encoder")
    folders = iter(range(10**6))

    def works() -> list[ShardJob]:
        places = [scratch / f"encoded-{next(folders)}" for _ in range(count)]
        for place in places:
            place.mkdir()
        return [ShardJob(index=clip, place=Location.parse(str(place))) for place in places]

    encoders = {"motion": str(scratch / "motion_encoder"), "sound": str(scratch / "audio_encoder")}
    arguments = {**encoders, "decoders": 1, "device": "cpu"}
    found, fates = _one_and_two(ShardEncoder, arguments, works, int(clip.frames[0]) / FPS, rounds)
    if failed := [fate.error for fate in fates if fate.error]:
        raise ValueError(f"{videos}: {failed[0]}")
    spent = {name: sum(fate.stage_s[name] for fate in fates) for name in ("motion", "sound", "write", "wait")}
    return {**found, "waits": spent["wait"] / sum(spent.values())}


def _one_and_two(
    stage: type[BatchStage],
    arguments: dict[str, Any],
    works: Callable[[], Sequence[Any]],
    seconds: float,
    rounds: int,
) -> tuple[dict[str, float], list[Any]]:
    """Measure the seconds of video a second of one and of two actors of a stage, in turn.

    Every actor computes on one thread; all inputs are alike. The time counts from the actors' first results to the
    last results while all actors work: the first inputs wait for models, and some of the last ones run alone.

    Args:
        seconds: Seconds of video in an input.

    Returns:
        The rates, and the stage's results.

    Raises:
        ValueError: There are too few inputs.
    """
    rates: dict[int, list[float]] = {1: [], 2: []}
    made: list[Any] = []
    for _ in range(rounds):
        for actors, some in rates.items():
            if len(todo := works()) < 4:
                raise ValueError(f"pieces must be >= 4, got {len(todo)}")
            pool = Pool(min=actors, max=actors, cpus=0.5)
            step = Step(stage=stage, pool=pool, arguments=arguments, max_in_flight=2)
            ends = []
            for one in Pipeline(steps=[step], start_timeout_s=600).run(todo):
                ends.append(time.perf_counter())
                made.append(one)
            timed = ends[actors - 1 : len(ends) - actors + 1]
            some.append((len(timed) - 1) * seconds / (timed[-1] - timed[0]))
    pairs = zip(rates[2], rates[1], strict=True)
    found = {
        "one": median(rates[1]),
        "two": median(rates[2]),
        "ratio": median(two / one for two, one in pairs),
    }
    return found, made
