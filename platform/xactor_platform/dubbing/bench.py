"""Bulk dubbing beside a plain loop of `xactor animate` over the same rows, one torch thread a process in both."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

STAGES = ("decode", "motion", "render", "encode")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One way of making all rows.

    Attributes:
        seconds: from the command to its end. starting_s: of these until the first video was there.
        rate: seconds of video a second, from the first video to the last: without the start, which more rows do not
            lengthen.
        occupancy: by stage, the part of its actors' time that they worked.
    """

    name: str
    seconds: float
    starting_s: float
    rate: float
    occupancy: dict[str, float] | None = None


def bench_dub(
    *,
    model: str,
    images: Sequence[str],
    audios: Sequence[str],
    rows: int,
    folder: Path,
    options: dict[str, object],
) -> dict[str, object]:
    """Figures as JSON has them. Every way makes the same videos: as many frames in each."""
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
    loop = _loop(model, items, folder / "loop")
    one = _dub(model, items, folder / "one", render=1)
    two = _dub(model, items, folder / "two", render=2)
    frames = {name: _frames(folder / name, items) for name in ("loop", "one", "two")}
    if len({tuple(counts) for counts in frames.values()}) != 1:
        raise RuntimeError(f"the ways made videos of other lengths: {frames}")
    return {
        "rows": rows,
        "video_s": sum(frames["loop"]) / 25,
        "ways": [asdict(timing) for timing in (loop, one, two)],
        "one_worker_over_the_loop": one.rate / loop.rate,
        "two_workers_over_the_loop": two.rate / loop.rate,
    }


def _loop(model: str, items: list[dict], output: Path) -> Timing:
    output.mkdir()
    manifest = output / "rows.jsonl"
    rows = [
        {k: v for k, v in item.items() if k != "id"} | {"output": f"{output}/{item['id']}.mp4"}
        for item in items
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "xactor.cli", "animate", "--model", model, "--input", str(manifest)]
    return _timed("xactor animate", [*command, "--device", "cpu"], output, items)


def _dub(model: str, items: list[dict], output: Path, *, render: int) -> Timing:
    output.mkdir()
    manifest = output / "rows.jsonl"
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    job = Path(__file__).resolve().parents[3] / "jobs" / "dub_bulk.py"
    command = [
        sys.executable,
        str(job),
        "--manifest",
        str(manifest),
        "--output",
        str(output),
        "--model",
        model,
    ]
    command += ["--pools.render.min", str(render), "--pools.render.max", str(render)]
    for stage in ("decode", "motion", "encode"):
        command += [f"--pools.{stage}.max", "1"]
    for stage in STAGES:
        command += [f"--pools.{stage}.cpus", "0.4"]
    timing = _timed(f"dub_bulk, {render} to render", command, output, items)
    bill = json.loads((output / "bill.json").read_text())
    making_s = timing.seconds - timing.starting_s
    actors = {**dict.fromkeys(STAGES, 1), "render": render}
    occupancy = {stage: bill["stage_s"][stage] / (actors[stage] * making_s) for stage in STAGES}
    return Timing(**{**asdict(timing), "occupancy": occupancy})


def _timed(name: str, command: list[str], output: Path, items: list[dict]) -> Timing:
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    begun = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    seconds = time.time() - begun
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    ready = sorted((output / f"{item['id']}.mp4").stat().st_mtime for item in items)
    counts = _frames(output, items)
    rate = (sum(counts) / 25) * (1 - 1 / len(items)) / (ready[-1] - ready[0])
    return Timing(name=name, seconds=seconds, starting_s=ready[0] - begun, rate=rate)


def _frames(output: Path, items: list[dict]) -> list[int]:
    import av

    counts = []
    for item in items:
        with av.open(str(output / f"{item['id']}.mp4"), "r") as container:
            counts.append(container.streams.video[0].frames)
    return counts
