"""Evaluate as the paper does: compute the columns of its Table 1 for a model, or for a folder of finished videos.

    ray job submit --working-dir . -- python jobs/evaluate.py self-driven \\
        --ravdess /data/ravdess --source.model /data/model --output /data/evaluation
    ray job submit --working-dir . -- python jobs/evaluate.py cross-driven \\
        --images /data/portraits --audios /data/speech --source.videos /data/ready --output /data/evaluation

The command also runs without `ray job submit`: it starts Ray, or joins the cluster of RAY_ADDRESS. Every worker must
see the folders. If the same command runs again, it makes and scores only the videos that are missing. Exit status: 0
all videos are scored, 2 the command cannot be carried out, 3 some videos failed.
"""

import _checkout

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.cluster.connect import connect
from xactor_platform.evaluation.judge import Weights
from xactor_platform.evaluation.pairs import Pair, cross_driven, self_driven
from xactor_platform.evaluation.report import write_report
from xactor_platform.evaluation.scoring import Source, evaluate
from xactor_platform.evaluation.votes import read_votes


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """Hold the options that both subcommands share."""

    source: Source
    """Source of the videos: a model, or a folder of finished videos."""
    output: Path
    """Folder for the videos, the scores and the report."""
    weights: Weights = field(default_factory=Weights)
    """Weights of the metrics' networks."""
    actors: int = 1
    """Number of Ray actors, at least 1. Each Ray actor makes and scores one video at a time."""
    gpus_per_actor: float = 0
    """GPUs that each Ray actor reserves; 0.5 is half a GPU."""
    seed: int = 0
    """Seed for the choice of pairs. A pair is a portrait and the sound that it speaks."""


@dataclass(frozen=True, kw_only=True)
class SelfDriven(_Evaluation):
    """Pair a frame of one clip with the sound of another clip of the same person. The other clip's video is the truth.

    Example: python jobs/evaluate.py self-driven --ravdess /data/ravdess --source.model model --output evaluation
    """

    ravdess: Path
    """Folder in RAVDESS's layout: Actor_07/01-01-05-02-01-02-07.mp4."""
    pairs: int = 100
    """Number of pairs, at least 1."""

    def make_pairs(self) -> list[Pair]:
        return self_driven(self.ravdess, pairs=self.pairs, seed=self.seed)

    def read_votes(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class CrossDriven(_Evaluation):
    """Pair portraits with sounds at random, each portrait and each sound at most once.

    Example: python jobs/evaluate.py cross-driven --images faces --audios speech --source.model model --output out
    """

    images: Path
    """Folder of portraits."""
    audios: Path
    """Folder of sounds, or of videos with sound."""
    votes: Path | None = None
    """File votes.json of the evaluated method, from jobs/user_study.py. It fills the table's columns of the user
    study."""

    def make_pairs(self) -> list[Pair]:
        return cross_driven(self.images, self.audios, seed=self.seed)

    def read_votes(self) -> dict[str, float]:
        return read_votes(self.votes) if self.votes else {}


SETTINGS = {"self-driven": SelfDriven, "cross-driven": CrossDriven}


def main() -> int:
    args: SelfDriven | CrossDriven = tyro.extras.subcommand_cli_from_dict(SETTINGS, description=__doc__)
    setting = "self-driven" if isinstance(args, SelfDriven) else "cross-driven"
    pairs, votes = args.make_pairs(), args.read_votes()
    connect(_checkout.PY_MODULES)
    results, weights, totals = evaluate(
        pairs,
        args.source,
        args.weights,
        args.output,
        actors=args.actors,
        gpus_per_actor=args.gpus_per_actor,
        progress=print_now,
    )
    videos = args.source.videos or args.output / "videos"
    facts = {"command": " ".join(["python", "jobs/evaluate.py", *sys.argv[1:]])}
    text = write_report(
        setting, pairs, results, weights, totals, videos, args.output, facts=facts, votes=votes
    )
    print(f"\n{text}\nwritten: {args.output}/report.json, table.md, frames.png")
    return 3 if any(result.error for result in results) else 0


if __name__ == "__main__":
    run_command(main)
