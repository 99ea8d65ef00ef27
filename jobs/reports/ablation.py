"""Define the options of `jobs/report.py ablation`, and its picture."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _checkout import CHECKOUT

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

COLUMNS, PX = 10, 112


@dataclass(frozen=True, kw_only=True)
class ReportAblation:
    """Train every variant of the paper's Table 2, score them and write the table.

    The command starts a Ray cluster on this machine. It keeps finished trainings. It writes report.json, table.md and
    rollouts.png, which is like the paper's Figure 4: each variant's longest held-out rollout, drawn from its latents.

    Example: python jobs/report.py ablation --shards demo/corpus/shards --seeds 0 1 2 --train-steps 300
    """

    shards: str = "demo/corpus/shards"
    """Folder of stage 2's shards."""
    output: Path = Path("demo/ablation")
    """Folder for the trainings and the report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every variant is trained and sampled once with each."""
    train_steps: int = 300
    """Steps of each training, at least 1."""
    sampling_steps: int = 20
    """DDIM steps of a chunk, within 1..1000."""
    max_clips: int = 4
    """Most held-out clips; the longest are used."""

    def execute(self) -> int:
        from xactor.controls import LATENT_DIM
        from xactor_platform.evaluation.ablation import markdown, save_report, score_variants

        started = time.monotonic()

        def progress(line: str) -> None:
            print(f"{(time.monotonic() - started) / 60:5.1f} min  {line}", flush=True)

        # A submitted training runs in another folder.
        runs = (self.output / "runs").absolute()
        runs.mkdir(parents=True, exist_ok=True)
        if not self._train(runs, progress):
            return 1
        scores, shown = score_variants(
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
            "frames": len(shown["truth"]),
        }
        save_report(self.output, scores, facts)
        if shown["truth"].shape[1] == LATENT_DIM:
            draw_rollouts(shown).save(self.output / "rollouts.png")
        print(markdown(scores))
        progress(f"written: {self.output}/report.json, table.md, rollouts.png")
        return 0

    def _train(self, runs: Path, progress) -> bool:
        """Submit every training that is not finished; return False after one that fails."""
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


def draw_rollouts(shown: "dict[str, np.ndarray]") -> "Image":
    """Draw each rollout as a row of faces at even times, acted by one held-out person of the fixed embedding.

    Args:
        shown: Latents [T, D] by the row's name.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from xactor.controls import decode_controls
    from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

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
