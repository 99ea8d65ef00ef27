"""Table 2 of the paper on the demo corpus: trains every variant with several seeds, samples all, writes the table.

    python jobs/ablate.py [--shards demo/corpus/shards] [--seeds 0 1 2] [--train-steps 300]

Starts a Ray cluster of its own on this machine. Trainings that are done are not done again. Writes report.json,
table.md and rollouts.png, as Figure 4: the longest held-out rollout of each variant, drawn from its latents.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import _checkout

import numpy as np
import tyro
from PIL import Image, ImageDraw

from xactor.controls import LATENT_DIM, decode_controls
from xactor_platform.evaluation.ablation import markdown, save_report, score_variants, trainings
from xactor_platform.cluster.local import local_cluster
from xactor_platform.demo_corpus.identity import held_out_identities, render_frame
from xactor_platform.training.run.folder import EXPORT

COLUMNS, PX = 10, 112


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Which shards, seeds and sizes."""

    shards: str = str(_checkout.CHECKOUT / "demo/corpus/shards")
    output: Path = _checkout.CHECKOUT / "demo/ablation"
    seeds: tuple[int, ...] = (0, 1, 2)
    train_steps: int = 300
    sampling_steps: int = 20
    max_clips: int = 4
    """Of the held-out ones, the longest."""


def main(args: Ablate) -> None:
    started = time.monotonic()
    runs = args.output / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    missing = {
        name: options
        for name, options in trainings(args.seeds).items()
        if not (runs / name / EXPORT / "motion" / "model.safetensors").exists()
    }
    with local_cluster(cpus=2, log=args.output / "ray.log") as cluster:
        for number, (name, options) in enumerate(missing.items()):
            say(f"training {name}, {number + 1} of {len(missing)}", started)
            command = ["python", "jobs/train_stage2.py", "tiny", "--data.shards", args.shards]
            command += ["--run.storage", str(runs), "--run.name", name]
            command += ["--train.steps", str(args.train_steps), *options]
            if code := cluster.submit(command, working_dir=_checkout.CHECKOUT):
                sys.exit(f"the training {name} failed with exit code {code}")
    try:
        scores, shown = score_variants(
            runs,
            args.shards,
            seeds=args.seeds,
            steps=args.sampling_steps,
            max_clips=args.max_clips,
            say=lambda line: say(line, started),
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    facts = {
        "command": " ".join(["python", "jobs/ablate.py", *sys.argv[1:]]),
        "minutes": (time.monotonic() - started) / 60,
        "train_steps": args.train_steps,
        "sampling_steps": args.sampling_steps,
        "frames": len(shown["truth"]),
    }
    save_report(args.output, scores, facts)
    if shown["truth"].shape[1] == LATENT_DIM:
        draw(shown).save(args.output / "rollouts.png")
    print(markdown(scores))
    say(f"written: {args.output}/report.json, table.md, rollouts.png", started)


def draw(shown: dict[str, np.ndarray]) -> Image.Image:
    """A row of faces for each rollout, at even times, acted by one held-out person from the fixed embedding."""
    person = held_out_identities()[0]
    sheet = Image.new("RGB", (180 + COLUMNS * PX, len(shown) * PX), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, z) in enumerate(shown.items()):
        pen.text((6, row * PX + PX // 2), name, fill="black")
        controls = decode_controls(z)
        for column, frame in enumerate(np.linspace(0, len(z) - 1, COLUMNS).astype(int)):
            face = Image.fromarray(render_frame(person, controls[frame])).resize((PX, PX))
            sheet.paste(face, (180 + column * PX, row * PX))
    return sheet


def say(line: str, started: float) -> None:
    print(f"{(time.monotonic() - started) / 60:5.1f} min  {line}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Ablate))
