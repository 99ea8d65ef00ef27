"""Run the demo: train both models further, starting from the model in the box, and render portraits that speak.

    python jobs/demo.py
    python jobs/demo.py --size box --stills faces

The demo makes a corpus, trains stage 1 on it, makes latents of the corpus, trains stage 2 on the latents, reports on
both models and renders videos. The results are in demo/. With `--size box` it makes the model in the box from scratch,
which takes hours; the results are then in demo/box/. After an interruption, run the same command again to continue.
"""

import json
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _checkout

import numpy as np
import tyro
from PIL import Image

from _steps import Step, Steps
from xactor.media import read_frames
from xactor.options import PAPER, Quality
from xactor_platform.cluster.local import LocalCluster, local_cluster
from xactor_platform.data.index import LANDMARKS, load_index
from xactor_platform.evaluation.render_report import sheet

DEMO = _checkout.CHECKOUT / "demo"
# The corpus of the demo, and that of the model in the box, which learns from more people.
CORPUS = {"demo": {"minutes": 5, "crop-px": 128}, "box": {"minutes": 24, "identities": 56, "crop-px": 128}}
BOX = _checkout.CHECKOUT / "xactor" / "box"
# Options of the preset `box` in the demo, which trains the model in the box for a few minutes more.
FURTHER: dict[str, dict[str, Any]] = {
    "stage1": {
        "model.start": BOX,
        "train.vae-steps": 0,
        "train.motion-steps": 30,
        "train.frames-steps": 4,
        "train.steps": 34,
        "train.motion-learning-rate": 1e-4,
        "train.learning-rate": 1e-4,
        "train.temporal-learning-rate": 1e-4,
        "train.ema-decay": 0.9,
        "train.evaluate-every": 17,
        "train.evaluate-frames": 256,
    },
    "stage2": {
        "model.start": BOX,
        "train.steps": 60,
        "train.learning-rate": 1e-4,
        "train.evaluate-every": 30,
    },
}
# The guess alone is nearest to the truth at this size: see docs/results.md.
RENDER = {"steps": 0, "cfg": 1.0}
# Guidance by the audio, and steps of motion for each quality. Stronger guidance exaggerates the motion.
AUDIO_CFG = 2.0
MOTION_STEPS: dict[Quality, int] = {"draft": 5, "good": 10, "best": 20}
SHEET_COLUMNS = 8
# Title of each step, and its seconds on two CPU cores in the demo and for the model in the box.
STEPS = (
    ("Making a corpus of talking clips", 150, 700),
    ("Training stage 1", 240, 5600),
    ("Encoding the corpus", 40, 100),
    ("Training stage 2", 120, 800),
    ("Reporting on people and speech that were held out", 120, 300),
    ("Rendering people who were held out", 45, 60),
)


@dataclass(frozen=True, kw_only=True)
class RunDemo:
    """Train both models on a small corpus and render videos with them."""

    size: Literal["demo", "box"] = "demo"
    """`demo` trains the model in the box for a few minutes more; `box` makes that model from scratch, in hours."""
    stills: Path | None = None
    """Folder of still faces, photographs or paintings. Every second person is then a puppet of one of them."""


def main(args: RunDemo) -> None:
    # Exit by an exception, so that SIGTERM also ends the cluster.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quick = args.size == "demo"
    folder, further = (DEMO, FURTHER) if quick else (DEMO / "box", {"stage1": {}, "stage2": {}})
    corpus, latents, runs, report = (folder / name for name in ("corpus", "latents", "runs", "report"))
    steps = Steps(
        [Step(title=title, expected_s=demo_s if quick else box_s) for title, demo_s, box_s in STEPS],
        folder / "demo.log",
    )
    steps.next()
    # A corpus of an earlier version has no landmarks and is made again.
    if (corpus / "videos" / "index.parquet").exists() and load_index(str(corpus / "videos")).having(
        LANDMARKS
    ):
        steps.skip()
    else:
        options: dict[str, Any] = {"output": corpus, **CORPUS[args.size]}
        if args.stills:
            options["stills"] = args.stills.absolute()
        run(steps, "make_demo_corpus.py", options)
    steps.next()
    with local_cluster(cpus=2, log=folder / "ray.log") as cluster:
        options = {"data.shards": corpus / "videos", **further["stage1"]}
        train(steps, cluster, folder, "stage1", options)
        steps.next()
        export = runs / "stage1" / "export"
        encoding = {"videos": corpus / "videos", "model": export, "output": latents / "shards"}
        submit(steps, cluster, folder, "precompute.py", {**encoding, "latents": "controls"})
        steps.next()
        train(steps, cluster, folder, "stage2", {"data.shards": latents / "shards", **further["stage2"]})
    steps.next()
    rendering = {f"render.{name}": value for name, value in RENDER.items()}
    render = {
        "model": export,
        "videos": corpus / "videos",
        "output": report / "render",
        "latents": "controls",
    }
    run(steps, "report.py render", {**render, **rendering})
    motion = {"run": runs / "stage2", "shards": latents / "shards", "output": report / "motion"}
    sampling = {"sampling.steps": MOTION_STEPS["draft"], "sampling.audio-cfg": AUDIO_CFG}
    run(steps, "report.py motion", {**motion, **sampling})
    steps.next()
    sheet(speak(steps, folder)).save(report / "acting.png")
    print(f"\nFinished in {steps.close():.1f} minutes")
    print(f"videos  {folder}/videos/*.mp4\nplots   {report}: acting.png, render/faces.png, motion/lips.png")
    print(f"corpus  {corpus}/clips (mp4); runs {runs}/stage1, {runs}/stage2 (metrics.jsonl, checkpoints)")
    print(f"model   {folder}/model (xactor animate --model ..., make serve)\nlog     {folder}/demo.log")


def speak(steps: Steps, folder: Path) -> list[list[np.ndarray]]:
    """Render a video of each held-out person.

    Returns:
        Rows of pictures: for each person one row with frames of the true clip, and one with frames of the video.
    """
    corpus, model, videos = (folder / name for name in ("corpus", "model", "videos"))
    # An earlier run may have left a model.
    if model.exists():
        shutil.rmtree(model)
    exports = {f"stage{n}": folder / f"runs/stage{n}/export" for n in (1, 2)}
    rendering = {f"render_{name}": value for name, value in RENDER.items()}
    common = {**PAPER, **rendering, "audio_cfg": AUDIO_CFG}
    options = {name: {**common, "motion_steps": count} for name, count in MOTION_STEPS.items()}
    recommended = folder / "recommended.json"
    recommended.write_text(json.dumps({"default": "good", **options}))
    xactor(steps, "assemble", {**exports, "recommended": recommended, "dtype": "float16", "output": model})
    videos.mkdir(exist_ok=True)
    held_out = load_index(str(corpus / "videos")).held_out()
    # The shortest clip of each person: rows come in order of length, and `setdefault` keeps the first.
    clips: dict[str, Path] = {}
    for row in np.argsort(held_out.frames, kind="stable"):
        clips.setdefault(str(held_out.speaker[row]), corpus / "clips" / "test" / f"{held_out.key[row]}.mp4")
    items = []
    for speaker, clip in clips.items():
        Image.fromarray(next(read_frames(clip))).save(videos / f"{speaker}.png")
        paths = {"image": videos / f"{speaker}.png", "audio": clip, "output": videos / f"{speaker}.mp4"}
        items.append({name: str(path) for name, path in paths.items()})
    (videos / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    xactor(steps, "animate", {"model": model, "input": videos / "items.jsonl"})
    rows = []
    for speaker, clip in clips.items():
        for video in (clip, videos / f"{speaker}.mp4"):
            frames = list(read_frames(video))
            rows.append([frames[n] for n in np.linspace(0, len(frames) - 1, SHEET_COLUMNS).astype(int)])
    return rows


def train(steps: Steps, cluster: LocalCluster, folder: Path, stage: str, options: Mapping[str, Any]) -> None:
    """Train `stage1` or `stage2` with the given options of the preset `box`. Exit if the training was stopped."""
    storage = folder / "runs"
    run_options = {"run.storage": storage, "run.name": stage}
    submit(steps, cluster, folder, f"train_{stage}.py box", {**run_options, **options})
    if not (storage / stage / "export").exists():
        sys.exit(f"{storage / stage} was stopped; the same command resumes it")


def submit(steps: Steps, cluster: LocalCluster, folder: Path, job: str, options: Mapping[str, Any]) -> None:
    """Submit a job to the cluster and wait for it."""
    entrypoint = ["python", *f"jobs/{job}".split(), *words(options)]
    command = cluster.submit_command(entrypoint, working_dir=_checkout.CHECKOUT)
    if code := steps.run(command, env=cluster.env):
        sys.exit(
            f"the job jobs/{job} failed with exit code {code}; its output: {folder / 'demo.log'}, "
            f"Ray's log: {folder / 'ray.log'}. To start again remove {folder / 'runs'} and {folder / 'latents'}"
        )


def run(steps: Steps, job: str, options: Mapping[str, Any]) -> None:
    """Run a job in a separate process and show its results."""
    name, *subcommand = job.split()
    path = str(_checkout.CHECKOUT / "jobs" / name)
    _run(steps, f"jobs/{job}", path, *subcommand, *words(options))


def xactor(steps: Steps, command: str, options: Mapping[str, Any]) -> None:
    """Run `xactor` in a separate process and show its results."""
    _run(steps, f"xactor {command}", "-m", "xactor.cli", command, *words(options))


def _run(steps: Steps, name: str, *arguments: str) -> None:
    """Run Python with the given arguments, and exit if it fails."""
    if code := steps.run([sys.executable, *arguments], results=True):
        sys.exit(f"{name} failed with exit code {code}")


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line. A tuple becomes several words after its option."""
    found = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        found += [f"--{name}", *map(str, values)]
    return found


if __name__ == "__main__":
    main(tyro.cli(RunDemo, description=__doc__))
