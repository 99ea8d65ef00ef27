"""The paper's evaluation: Table 1's columns for a model, or for a folder of ready videos.

    ray job submit --working-dir . -- python jobs/evaluate.py self-driven \\
        --ravdess /data/ravdess --source.model /data/model --output /data/evaluation
    ray job submit --working-dir . -- python jobs/evaluate.py cross-driven \\
        --images /data/portraits --audios /data/speech --source.videos /data/ready --output /data/evaluation

Also plain. Folders must be seen by every worker. The same command again does what is missing. Exit status: 0 all done,
2 the command cannot be carried out, 3 some videos failed.
"""

import _checkout

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from xactor_platform.evaluation.judge import Weights
from xactor_platform.evaluation.pairs import cross_driven, self_driven
from xactor_platform.evaluation.report import write_report
from xactor_platform.evaluation.scoring import Source, evaluate
from xactor_platform.evaluation.votes import read_votes
from xactor_platform.cluster.connect import connect


@dataclass(frozen=True, kw_only=True)
class _Common:
    source: Source
    output: Path
    weights: Weights = field(default_factory=Weights)
    actors: int = 1
    """How many videos are made at a time."""
    gpus_per_actor: float = 0
    seed: int = 0
    """Of the pairs."""


@dataclass(frozen=True, kw_only=True)
class SelfDriven(_Common):
    """A frame of one clip speaks the sound of another one of the same actor, whose video is the truth."""

    ravdess: Path
    """A folder in RAVDESS's layout."""
    pairs: int = 100


@dataclass(frozen=True, kw_only=True)
class CrossDriven(_Common):
    """Pictures speak sounds, matched once."""

    images: Path
    audios: Path
    votes: Path | None = None
    """A method's votes.json of jobs/user_study.py, for the columns that people fill."""


def main() -> int:
    args = tyro.extras.subcommand_cli_from_dict({"self-driven": SelfDriven, "cross-driven": CrossDriven})
    votes = {}
    try:
        if isinstance(args, SelfDriven):
            setting, pairs = "self-driven", self_driven(args.ravdess, pairs=args.pairs, seed=args.seed)
        else:
            setting, pairs = "cross-driven", cross_driven(args.images, args.audios, seed=args.seed)
            votes = read_votes(args.votes) if args.votes else {}
        connect(_checkout.PY_MODULES)
        results, weights, totals = evaluate(
            pairs,
            args.source,
            args.weights,
            args.output,
            actors=args.actors,
            gpus_per_actor=args.gpus_per_actor,
            say=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    videos = args.source.videos or args.output / "videos"
    facts = {"command": " ".join(["python", "jobs/evaluate.py", *sys.argv[1:]])}
    text = write_report(
        setting, pairs, results, weights, totals, videos, args.output, facts=facts, votes=votes
    )
    print(f"\n{text}\nwritten: {args.output}/report.json, table.md, frames.png")
    return 3 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
