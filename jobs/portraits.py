"""From nothing to portraits that speak: stage 1, its latents of the corpus, stage 2 on them, and videos.

    python jobs/portraits.py

Everything lands in demo/: the corpus (as of `jobs/demo.py`), both trainings, the model, the reports, two videos.
"""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import _checkout

import numpy as np
from PIL import Image

from xactor.media import read_frames
from xactor_platform.cluster import LocalCluster, local_cluster
from xactor_platform.index import load_index
from xactor_platform.render_report import sheet

DEMO = _checkout.CHECKOUT / "demo"
CORPUS, LATENTS, RUNS, MODEL, REPORT = (
    DEMO / name for name in ("corpus", "latents", "runs", "model", "report")
)
VIDEOS = DEMO / "videos"
# So long after random weights a renderer comes nearest to the truth in one step, blurred where it is unsure.
RENDER = {"steps": 1, "cfg": 1.0}
SHEET_COLUMNS = 8


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with this
    started = time.monotonic()
    if not (CORPUS / "videos" / "index.parquet").exists():
        say("1. A corpus of talking clips with known ground truth")
        run("make_demo_corpus.py", "--output", str(CORPUS))
    with local_cluster(cpus=2, log=DEMO / "ray.log") as cluster:
        say("2. A local Ray cluster, and stage 1 submitted to it: the motion encoder and the renderer")
        submit(
            cluster,
            *("train_stage1.py", "tiny", "--data.shards", str(CORPUS / "videos")),
            *("--run.storage", str(RUNS), "--run.name", "stage1"),
        )
        say("3. The corpus as that encoder's motion latents")
        export = str(RUNS / "stage1" / "export")
        submit(
            cluster,
            *("precompute.py", "--videos", str(CORPUS / "videos")),
            *("--model", export, "--output", str(LATENTS / "shards")),
        )
        say("4. Stage 2 on them: the motion model, 2 ranks of ZeRO-2")
        submit(
            cluster,
            *("train_stage2.py", "tiny", "--data.shards", str(LATENTS / "shards")),
            *("--run.storage", str(RUNS), "--run.name", "stage2"),
        )
    say("5. What both have learned, on held-out people and held-out speech")
    run(
        "report_render.py",
        *("--model", export, "--videos", str(CORPUS / "videos"), "--output", str(REPORT / "render")),
        *(part for name, value in RENDER.items() for part in (f"--render.{name}", str(value))),
    )
    run(
        "report_motion.py",
        *("--run", str(RUNS / "stage2"), "--shards", str(LATENTS / "shards")),
        *("--output", str(REPORT / "motion"), "--sampling.steps", "20"),
    )
    say("6. A drawn person and a real photograph, neither ever trained on, speak held-out speech")
    shown = speak()
    sheet(shown).save(REPORT / "acting.png")
    say(f"Done in {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"videos  {VIDEOS}/*.mp4\nmodel   {MODEL} (xactor animate --model {MODEL.name} ...)")
    print(f"corpus  {CORPUS}/clips (mp4); runs {RUNS}/stage1, {RUNS}/stage2 (metrics.jsonl, checkpoints)")
    print(f"plots   {REPORT}: acting.png, render/faces.png, motion/loss.png, motion/lips.png")


def speak() -> list[list[np.ndarray]]:
    """A video of each held-out person; rows of pictures, a person's true clip and the video by turns."""
    export = {f"--stage{n}": str(RUNS / f"stage{n}" / "export") for n in (1, 2)}
    if not MODEL.exists():
        xactor("assemble", *itertools.chain(*export.items()), "--output", str(MODEL))
    VIDEOS.mkdir(exist_ok=True)
    held_out = load_index(str(CORPUS / "videos")).held_out()
    clips: dict[str, Path] = {}
    for row in np.argsort(held_out.frames, kind="stable"):  # of each person the shortest
        clips.setdefault(str(held_out.speaker[row]), CORPUS / "clips" / "test" / f"{held_out.key[row]}.mp4")
    items = []
    for speaker, clip in clips.items():
        Image.fromarray(next(read_frames(clip))).save(VIDEOS / f"{speaker}.png")
        paths = {"image": VIDEOS / f"{speaker}.png", "audio": clip, "output": VIDEOS / f"{speaker}.mp4"}
        items.append({name: str(path) for name, path in paths.items()})
    (VIDEOS / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    render = (part for name, value in RENDER.items() for part in (f"--render-{name}", str(value)))
    chosen = ("--input", str(VIDEOS / "items.jsonl"), "--motion-steps", "20", *render)
    xactor("animate", "--model", str(MODEL), *chosen)
    rows = []
    for speaker, clip in clips.items():
        for video in (clip, VIDEOS / f"{speaker}.mp4"):
            frames = list(read_frames(video))
            rows.append([frames[n] for n in np.linspace(0, len(frames) - 1, SHEET_COLUMNS).astype(int)])
    return rows


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def submit(cluster: LocalCluster, job: str, *arguments: str) -> None:
    code = cluster.submit(["python", f"jobs/{job}", *arguments], working_dir=_checkout.CHECKOUT)
    if code:
        sys.exit(f"the job jobs/{job} failed with exit code {code}; Ray's log: {DEMO / 'ray.log'}")


def run(job: str, *arguments: str) -> None:
    _run(f"jobs/{job}", str(_checkout.CHECKOUT / "jobs" / job), *arguments)


def xactor(*arguments: str) -> None:
    _run("xactor", "-m", "xactor.cli", *arguments)


def _run(name: str, *arguments: str) -> None:
    code = subprocess.run([sys.executable, *arguments], check=False, cwd=_checkout.CHECKOUT).returncode
    if code:
        sys.exit(f"{name} failed with exit code {code}")


if __name__ == "__main__":
    main()
