"""What curation costs: each stage's time alone, decoding beside PyAV by itself, and two actors beside one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import av
import ray.data

from xactor.media import read_span
from xactor_platform.curation.config import Bounds, Gates
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.files import list_videos
from xactor_platform.curation.lips import NO_SYNCNET, Sync
from xactor_platform.curation.probe import Probe
from xactor_platform.curation.scan import Scan, pieces_of
from xactor_platform.curation.track import Track
from xactor_platform.curation.work import FPS, Piece
from xactor_platform.curation.write import Write
from xactor_platform.pools import pack, piecewise, results

# Whatever a clip is like, all stages shall work on it.
_OPEN = Gates(least_crop_px=32, most_blur=1, most_occluded=1, least_speech_db=0, least_confidence=-1e9)


def bench_stages(
    folder: str, scratch: Path, syncnet: str, size_px: int
) -> tuple[list[dict[str, Any]], list[Piece]]:
    """Hours of video for an hour of one core, by stage, in this process; and the pieces that the first two made.

    Args:
        syncnet: a model, or `none`.
    """
    bounds = Bounds()
    most = {"most_s": bounds.most_s}
    probe = Probe.make(most_bytes=bounds.most_bytes, most_pixels=bounds.most_pixels, **most)
    scan = Scan.make(**most)
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
        "sync": Sync.make(syncnet=syncnet, least_confidence=-1e9, device="cpu"),
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
    """Frames a second of one thread: PyAV's own loop to RGB arrays, and the stretch reader. By turns, medians."""

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


def bench_actors(pieces: Sequence[Piece], scratch: Path, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of video a second that one and two actors of the dearest stage track, by turns.

    Every actor is a process of one thread. All pieces are as long as the shortest. What is timed is between two results
    while all actors work: their first pieces wait for models, and of the last ones some have none beside them.

    Raises:
        ValueError: too few for that.
    """
    if count < 4:
        raise ValueError(f"pieces must be >= 4, got {count}")
    frames = min(piece.end - piece.first for piece in pieces)
    alike = [replace(piece, end=piece.first + frames) for piece in pieces]
    many = [alike[n % len(alike)] for n in range(count)]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for actors, some in rates.items():
            with piecewise(600):
                tables = ray.data.from_arrow([pack(piece) for piece in many]).map_batches(
                    Track,  # pyright: ignore
                    fn_constructor_kwargs={"output": str(scratch), "patience": 60, "memory_gib": 4},
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
                    num_cpus=0.5,
                )
            ends = [time.perf_counter() for _ in results(tables)]
            timed = ends[actors - 1 : len(ends) - actors + 1]
            some.append((len(timed) - 1) * frames / FPS / (timed[-1] - timed[0]))
    pairs = zip(rates[2], rates[1], strict=True)
    return {
        "one": median(rates[1]),
        "two": median(rates[2]),
        "ratio": median(two / one for two, one in pairs),
    }
