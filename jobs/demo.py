"""Run the demo: train both models further, starting from the model in the box, and render portraits that speak.

    python jobs/demo.py
    python jobs/demo.py --size box --stills faces

The model in the box is the small model that comes with the package, in xactor/box. The demo makes a corpus and trains
stage 1, the renderer and its motion encoder, on it. It then makes motion latents of the corpus and trains stage 2, the
motion model, on them. Finally it reports on both models and renders videos. The results are in demo/. With `--size box`
the command makes the model in the box from scratch, which takes hours; the results are then in demo/box/. After an
interruption, run the same command again to continue.
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
from xactor_platform.data.index import LANDMARKS
from xactor_platform.data.index_file import load_index
from xactor_platform.evaluation.render_report import sheet

DEMO = _checkout.CHECKOUT / "demo"
# Options of the demo's corpus, and of the corpus for the model in the box, which learns from more people.
CORPUS = {"demo": {"minutes": 5, "crop-px": 128}, "box": {"minutes": 24, "identities": 56, "crop-px": 128}}
BOX = _checkout.CHECKOUT / "xactor" / "box"
# With these options of the preset `box` the demo trains the model in the box for a few minutes more.
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
# With 0 DDIM steps the frames show the guess: the portrait as the guess network moves it, not corrected by the UNet.
# For a model of this size, a DDIM step took more time and hardly changed the measured figures: see docs/results.md. A
# CFG of 1 means no guidance.
RENDER = {"steps": 0, "cfg": 1.0}
# Scale of the guidance of the motion by the audio. Stronger guidance exaggerates the motion.
AUDIO_CFG = 2.0
# DDIM steps for a chunk of motion, by quality.
MOTION_STEPS: dict[Quality, int] = {"draft": 5, "good": 10, "best": 20}
# Number of pictures in a row of acting.png.
SHEET_COLUMNS = 8
# Title of each step, and its expected seconds on two CPU cores: first in the demo, then for the model in the box.
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
    """Folder of still faces, photographs or paintings. Every second person of the corpus is then no drawn person but a
    puppet: one of these faces, moved by a program."""


def main(args: RunDemo) -> None:
    # Make SIGTERM raise SystemExit, so that the cluster's context manager ends the cluster.
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
        # With `controls` the latents embed the clips' control tracks (blendshapes and head pose). Small renderers learn
        # from them.
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
    """Put both trained models into one model folder, and render a video of each held-out person with it.

    Returns:
        Rows of pictures: for each person one row with frames of the true clip, and one row with frames of the rendered
        video.
    """
    corpus, model, videos = (folder / name for name in ("corpus", "model", "videos"))
    # An earlier run may have left a model, and `xactor assemble` does not replace a folder.
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
    # Take the shortest clip of each person: the rows are in order of length, and `setdefault` keeps the first one.
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
    """Train `stage1` or `stage2` with the preset `box` and the given options. Exit if the training was stopped."""
    storage = folder / "runs"
    run_options = {"run.storage": storage, "run.name": stage}
    submit(steps, cluster, folder, f"train_{stage}.py box", {**run_options, **options})
    if not (storage / stage / "export").exists():
        sys.exit(f"{storage / stage} was stopped; the same command resumes it")


def submit(steps: Steps, cluster: LocalCluster, folder: Path, job: str, options: Mapping[str, Any]) -> None:
    """Submit a job to the cluster and wait until it ends. Exit if it fails."""
    entrypoint = ["python", *f"jobs/{job}".split(), *words(options)]
    command = cluster.submit_command(entrypoint, working_dir=_checkout.CHECKOUT)
    if code := steps.run(command, env=cluster.env):
        sys.exit(
            f"the job jobs/{job} failed with exit code {code}; its output: {folder / 'demo.log'}, "
            f"Ray's log: {folder / 'ray.log'}. To start again remove {folder / 'runs'} and {folder / 'latents'}"
        )


def run(steps: Steps, job: str, options: Mapping[str, Any]) -> None:
    """Run a job in a separate process and show its results. Exit if it fails."""
    name, *subcommand = job.split()
    path = str(_checkout.CHECKOUT / "jobs" / name)
    _run(steps, f"jobs/{job}", path, *subcommand, *words(options))


def xactor(steps: Steps, command: str, options: Mapping[str, Any]) -> None:
    """Run a command of `xactor` in a separate process and show its results. Exit if it fails."""
    _run(steps, f"xactor {command}", "-m", "xactor.cli", command, *words(options))


def _run(steps: Steps, name: str, *arguments: str) -> None:
    """Run Python with the given arguments. If it fails, exit with a message that contains `name`."""
    if code := steps.run([sys.executable, *arguments], results=True):
        sys.exit(f"{name} failed with exit code {code}")


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line. The values of a tuple become several words after the option's name."""
    found = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        found += [f"--{name}", *map(str, values)]
    return found


if __name__ == "__main__":
    main(tyro.cli(RunDemo, description=__doc__))
