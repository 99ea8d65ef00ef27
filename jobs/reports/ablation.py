"""Define the options of `jobs/report.py ablation`, and draw its picture of rollouts.

A rollout is the motion that a model generates, chunk by chunk, for the sound of a whole clip.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _checkout import CHECKOUT

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Number of faces in a row of the picture. Side of a face and width of the row's name, in pixels.
COLUMNS, PX, NAME_PX = 10, 112, 180


@dataclass(frozen=True, kw_only=True)
class ReportAblation:
    """Train every variant of the paper's Table 2, score them and write the table.

    The command starts a Ray cluster on this machine. If the command runs again, it keeps the finished trainings. It
    writes report.json, table.md and rollouts.png. The picture resembles the paper's Figure 4: each row shows the motion
    that one variant generates for the longest held-out clip, as faces drawn from the motion latents.

    Example: python jobs/report.py ablation --shards demo/corpus/shards --seeds 0 1 2 --train-steps 300
    """

    shards: str = "demo/corpus/shards"
    """Folder of stage 2's shards."""
    output: Path = Path("demo/ablation")
    """Folder for the trainings and the report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds. Every variant is trained and sampled once with each seed."""
    train_steps: int = 300
    """Number of steps of each training, at least 1."""
    sampling_steps: int = 20
    """DDIM steps per chunk, within 1..1000."""
    max_clips: int = 4
    """Maximum number of held-out clips. The longest clips are used."""

    def execute(self) -> int:
        from xactor.controls import LATENT_DIM
        from xactor_platform.evaluation.ablation import markdown, save_report, score_variants

        started = time.monotonic()

        def progress(line: str) -> None:
            print(f"{(time.monotonic() - started) / 60:5.1f} min  {line}", flush=True)

        # A submitted training has another working directory, so it needs an absolute path.
        runs = (self.output / "runs").absolute()
        runs.mkdir(parents=True, exist_ok=True)
        if not self._train(runs, progress):
            return 1
        scores, rollouts = score_variants(
            runs,
            self.shards,
            seeds=self.seeds,
            steps=self.sampling_steps,
            max_clips=self.max_clips,
            progress=progress,
        )
        facts = {
            "command": " ".join(["python", "jobs/report.py", *sys.argv[1:]]),
            "minutes": (time.monotonic() - started) / 60,
            "train_steps": self.train_steps,
            "sampling_steps": self.sampling_steps,
            "frames": len(rollouts["truth"]),
        }
        save_report(self.output, scores, facts)
        # Faces can be drawn only from latents that are the fixed embedding of control tracks (`xactor.controls`). These
        # latents have the width LATENT_DIM.
        if rollouts["truth"].shape[1] == LATENT_DIM:
            draw_rollouts(rollouts).save(self.output / "rollouts.png")
        print(markdown(scores))
        progress(f"written: {self.output}/report.json, table.md, rollouts.png")
        return 0

    def _train(self, runs: Path, progress) -> bool:
        """Run every training that is not finished, one after another. Stop and return False if a training fails."""
        from xactor_platform.cluster.local import local_cluster
        from xactor_platform.evaluation.ablation import trainings
        from xactor_platform.storage.location import absolute
        from xactor_platform.training.run.folder import EXPORT

        missing = {
            name: options
            for name, options in trainings(self.seeds).items()
            if not (runs / name / EXPORT / "motion" / "model.safetensors").exists()
        }
        with local_cluster(cpus=2, log=self.output / "ray.log") as cluster:
            for number, (name, options) in enumerate(missing.items()):
                progress(f"Training {name} ({number + 1} of {len(missing)})")
                command = ["python", "jobs/train_stage2.py", "tiny", "--data.shards", absolute(self.shards)]
                command += ["--run.storage", str(runs), "--run.name", name]
                command += ["--train.steps", str(self.train_steps), *options]
                if code := cluster.submit(command, working_dir=CHECKOUT):
                    print(f"the training {name} failed with exit code {code}", file=sys.stderr)
                    return False
        return True


def draw_rollouts(rollouts: "dict[str, np.ndarray]") -> "Image":
    """Draw each rollout as a row of faces at evenly spaced times. All rows show the same held-out person.

    Args:
        rollouts: Latents [T, D] by the row's name. They are the fixed embedding of control tracks.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from xactor.controls import decode_controls
    from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

    person = held_out_identities()[0]
    sheet = Image.new("RGB", (NAME_PX + COLUMNS * PX, len(rollouts) * PX), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, z) in enumerate(rollouts.items()):
        pen.text((6, row * PX + PX // 2), name, fill="black")
        controls = decode_controls(z)
        for column, frame in enumerate(np.linspace(0, len(z) - 1, COLUMNS).astype(int)):
            face = Image.fromarray(render_frame(person, controls[frame])).resize((PX, PX))
            sheet.paste(face, (NAME_PX + column * PX, row * PX))
    return sheet
