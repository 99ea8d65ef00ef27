"""Compare bulk dubbing with a loop of `xactor animate` over the same rows, with one torch thread in each process.

Each row describes one video to make: the files of its portrait and its speech, and options.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from _checkout import CHECKOUT
from xactor.rates import FPS

# Stages of bulk dubbing. Each has a pool of actors.
STAGES = ("decode", "motion", "render", "encode")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Hold the times of one way to make the videos."""

    name: str
    """`loop`, or bulk dubbing with `one` or `two` render workers."""
    seconds: float
    """Seconds that a run over all rows takes, from the command's start to its end."""
    few_s: float
    """Seconds that a run over a third of the rows takes."""
    rate: float
    """Seconds of video that are made per second, without the time in which the command starts and ends.

    The two runs differ by two thirds of the rows. The rate is the length of these videos, divided by the difference of
    the two runs' times.
    """
    starting_s: float
    """Seconds in which the command starts and ends: `seconds` minus the time to make all videos at `rate`."""
    occupancy: dict[str, float] | None = None
    """By stage, the share of the time to make the videos in which the stage's actors worked; None for the loop."""


def bench_dub(
    *,
    model: str,
    images: Sequence[str],
    audios: Sequence[str],
    rows: int,
    folder: Path,
    options: dict[str, object],
) -> dict[str, object]:
    """Measure the loop and bulk dubbing on the same rows, and return figures for JSON.

    Args:
        model: Model folder.
        images: Files of the portraits. The rows use them in turn.
        audios: Files of the speech. The rows use them in turn.
        rows: Number of rows, at least 3.
        folder: Folder for the videos.
        options: Options of `xactor animate` that every row has.

    Raises:
        RuntimeError: A command fails, or the videos have different lengths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {
            "id": f"row{n:04d}",
            "image": str(Path(images[n % len(images)]).absolute()),
            "audio": str(Path(audios[n % len(audios)]).absolute()),
            **options,
        }
        for n in range(rows)
    ]
    ways = {"loop": partial(_loop, model), "one": partial(_dub, model, 1), "two": partial(_dub, model, 2)}
    timings = {}
    for name, way in ways.items():
        few = way(items[: rows // 3], folder / f"{name}-few")
        complete = way(items, folder / name)
        timings[name] = _timing(name, few, complete)
    if len({tuple(_frames(folder / name, items)) for name in ways}) != 1:
        raise RuntimeError("the loop and bulk dubbing made videos of different lengths")
    return {
        "rows": rows,
        "video_s": _video_s(folder / "loop", items),
        "ways": [asdict(timing) for timing in timings.values()],
        "one_worker_over_the_loop": timings["one"].rate / timings["loop"].rate,
        "two_workers_over_the_loop": timings["two"].rate / timings["loop"].rate,
    }


@dataclass(frozen=True, kw_only=True)
class Made:
    """Hold the figures of one finished command."""

    seconds: float
    """Seconds from the command's start to its end."""
    video_s: float
    """Seconds of video that the command made."""
    actor_s: dict[str, float] = field(default_factory=dict)
    """Seconds that a stage's actors worked, all together, by stage."""
    actors: dict[str, int] = field(default_factory=dict)
    """Number of actors, by stage."""


def _timing(name: str, few: Made, complete: Made) -> Timing:
    """Compute the times from a run over a third of the rows and a run over all rows."""
    rate = (complete.video_s - few.video_s) / (complete.seconds - few.seconds)
    # The time to make the videos, without the start and the end of the command.
    making_s = complete.video_s / rate
    occupancy = {
        stage: worked_s / (complete.actors[stage] * making_s) for stage, worked_s in complete.actor_s.items()
    }
    return Timing(
        name=name,
        seconds=complete.seconds,
        few_s=few.seconds,
        rate=rate,
        starting_s=complete.seconds - making_s,
        occupancy=occupancy or None,
    )


def _loop(model: str, items: list[dict], output: Path) -> Made:
    """Make the videos with a single `xactor animate` command, which makes one video after another."""
    output.mkdir()
    manifest = output / "rows.jsonl"
    rows = [
        {k: v for k, v in item.items() if k != "id"} | {"output": f"{output}/{item['id']}.mp4"}
        for item in items
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "xactor.cli", "animate", "--model", model, "--input", str(manifest)]
    seconds = _timed([*command, "--device", "cpu"])
    return Made(seconds=seconds, video_s=_video_s(output, items))


def _dub(model: str, render_actors: int, items: list[dict], output: Path) -> Made:
    """Make the videos with bulk dubbing, with `render_actors` actors that render and one actor in each other stage."""
    output.mkdir()
    manifest = output / "rows.jsonl"
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    command = [sys.executable, str(CHECKOUT / "jobs/dub_bulk.py"), "--manifest", str(manifest)]
    command += ["--output", str(output), "--model", model]
    actors: dict[str, int] = dict.fromkeys(STAGES, 1)
    actors["render"] = render_actors
    for stage, count in actors.items():
        command += [f"--pools.{stage}.min", str(count), f"--pools.{stage}.max", str(count)]
        # At 0.4 CPUs each, the five actors of a run with two render actors need two CPUs in all.
        command += [f"--pools.{stage}.cpus", "0.4"]
    seconds = _timed(command)
    spent = json.loads((output / "bill.json").read_text())["stage_s"]
    return Made(
        seconds=seconds,
        video_s=_video_s(output, items),
        actor_s={stage: spent[stage] for stage in STAGES},
        actors=actors,
    )


def _timed(command: list[str]) -> float:
    """Run a command and return the seconds that it took. Raise RuntimeError if the command fails."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    begun = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - begun


def _video_s(output: Path, items: list[dict]) -> float:
    """Return the length of all videos in a folder together, in seconds."""
    return sum(_frames(output, items)) / FPS


def _frames(output: Path, items: list[dict]) -> list[int]:
    """Return the number of frames of each row's video, <output>/<id>.mp4."""
    import av

    counts = []
    for item in items:
        with av.open(str(output / f"{item['id']}.mp4"), "r") as container:
            counts.append(container.streams.video[0].frames)
    return counts
