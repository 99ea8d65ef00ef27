"""The demo, an executable table of contents: from nothing to portraits that speak.

    python jobs/demo.py [--stage1 minutes|hour]

A corpus, stage 1 on it, its latents of the corpus, stage 2 on them, what both have learned, and videos. Everything
lands in demo/; with `--stage1 hour` in demo/hour/.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _checkout

import numpy as np
import tyro
from PIL import Image

from xactor.media import read_frames
from xactor_platform.cluster.local import LocalCluster, local_cluster
from xactor_platform.data.index import load_index
from xactor_platform.evaluation.render_report import sheet

DEMO = _checkout.CHECKOUT / "demo"
# What minutes have room for of the preset `tiny`, which takes over an hour.
MINUTES = {
    "model.encoder-channels": (16, 32, 64, 128),
    "train.steps": 483,
    "train.vae-steps": 60,
    "train.motion-steps": 400,
    "train.frames-steps": 20,
}
# An hour learns more of more people: nearly every clip has a face of its own.
HOUR_CORPUS = {"minutes": 30, "identities": 144}
# So long after random weights a renderer comes nearest to the truth in one step, blurred where it is unsure.
RENDER = {"steps": 1, "cfg": 1.0}
MOTION_STEPS = 10  # on this corpus's fixed embedding nearly as good as 20 and 50, see README
SHEET_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Demo:
    """How long stage 1 trains: a few minutes, or about an hour."""

    stage1: Literal["minutes", "hour"] = "minutes"


def main(args: Demo) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with the demo
    started = time.monotonic()
    quick = args.stage1 == "minutes"
    folder = DEMO if quick else DEMO / "hour"
    corpus, latents, runs, report = (folder / name for name in ("corpus", "latents", "runs", "report"))
    if not (corpus / "videos" / "index.parquet").exists():
        say("1. A corpus of talking clips with known ground truth, and its shards")
        run("make_demo_corpus.py", {"output": corpus, **({} if quick else HOUR_CORPUS)})
    with local_cluster(cpus=2, log=folder / "ray.log") as cluster:
        say("2. A local Ray cluster, and stage 1 submitted to it: the motion encoder and the renderer")
        train(cluster, folder, "stage1", {"data.shards": corpus / "videos", **(MINUTES if quick else {})})
        say("3. The corpus as that encoder's motion latents")
        export = runs / "stage1" / "export"
        encoding = {"videos": corpus / "videos", "model": export, "output": latents / "shards"}
        submit(cluster, folder, "precompute.py", encoding)
        say("4. Stage 2 on them: the motion model, 2 ranks of ZeRO-2")
        train(cluster, folder, "stage2", {"data.shards": latents / "shards"})
    say("5. What both have learned, on held-out people and held-out speech")
    rendering = {f"render.{name}": value for name, value in RENDER.items()}
    run(
        "report.py render",
        {"model": export, "videos": corpus / "videos", "output": report / "render", **rendering},
    )
    run(
        "report.py motion",
        {
            "run": runs / "stage2",
            "shards": latents / "shards",
            "output": report / "motion",
            "sampling.steps": MOTION_STEPS,
        },
    )
    say("6. A drawn person and a real photograph, neither ever trained on, speak held-out speech")
    shown = speak(folder)
    sheet(shown).save(report / "acting.png")
    say(f"Done in {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"videos  {folder}/videos/*.mp4\nplots   {report}: acting.png, render/faces.png, motion/lips.png")
    print(f"corpus  {corpus}/clips (mp4); runs {runs}/stage1, {runs}/stage2 (metrics.jsonl, checkpoints)")
    print(f"model   {folder}/model (xactor animate --model ..., make serve)")


def speak(folder: Path) -> list[list[np.ndarray]]:
    """A video of each held-out person; rows of pictures, a person's true clip and the video by turns."""
    corpus, model, videos = (folder / name for name in ("corpus", "model", "videos"))
    if model.exists():  # of other trainings, perhaps
        shutil.rmtree(model)
    exports = {f"stage{n}": folder / f"runs/stage{n}/export" for n in (1, 2)}
    xactor("assemble", {**exports, "output": model})
    videos.mkdir(exist_ok=True)
    held_out = load_index(str(corpus / "videos")).held_out()
    clips: dict[str, Path] = {}
    for row in np.argsort(held_out.frames, kind="stable"):  # of each person the shortest
        clips.setdefault(str(held_out.speaker[row]), corpus / "clips" / "test" / f"{held_out.key[row]}.mp4")
    items = []
    for speaker, clip in clips.items():
        Image.fromarray(next(read_frames(clip))).save(videos / f"{speaker}.png")
        paths = {"image": videos / f"{speaker}.png", "audio": clip, "output": videos / f"{speaker}.mp4"}
        items.append({name: str(path) for name, path in paths.items()})
    (videos / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rendering = {f"render-{name}": value for name, value in RENDER.items()}
    making = {"input": videos / "items.jsonl", "motion-steps": MOTION_STEPS, **rendering}
    xactor("animate", {"model": model, **making})
    rows = []
    for speaker, clip in clips.items():
        for video in (clip, videos / f"{speaker}.mp4"):
            frames = list(read_frames(video))
            rows.append([frames[n] for n in np.linspace(0, len(frames) - 1, SHEET_COLUMNS).astype(int)])
    return rows


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def train(cluster: LocalCluster, folder: Path, stage: str, options: Mapping[str, Any]) -> None:
    """The preset `tiny`, changed by options."""
    storage = folder / "runs"
    submit(cluster, folder, f"train_{stage}.py tiny", {"run.storage": storage, "run.name": stage, **options})
    if not (storage / stage / "export").exists():
        sys.exit(f"{storage / stage} was stopped; the same command goes on with it")


def submit(cluster: LocalCluster, folder: Path, job: str, options: Mapping[str, Any]) -> None:
    code = cluster.submit(["python", *f"jobs/{job}".split(), *words(options)], working_dir=_checkout.CHECKOUT)
    if code:
        sys.exit(
            f"the job jobs/{job} failed with exit code {code}; Ray's log: {folder / 'ray.log'}. "
            f"To start anew remove {folder / 'runs'} and {folder / 'latents'}"
        )


def run(job: str, options: Mapping[str, Any]) -> None:
    _run(f"jobs/{job}", *f"jobs/{job}".split(), *words(options))


def xactor(command: str, options: Mapping[str, Any]) -> None:
    _run(f"xactor {command}", "-m", "xactor.cli", command, *words(options))


def _run(name: str, *arguments: str) -> None:
    code = subprocess.run([sys.executable, *arguments], check=False, cwd=_checkout.CHECKOUT).returncode
    if code:
        sys.exit(f"{name} failed with exit code {code}")


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them."""
    found = []
    for name, value in options.items():
        found += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


if __name__ == "__main__":
    main(tyro.cli(Demo))
