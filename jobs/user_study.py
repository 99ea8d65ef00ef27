"""Make the paper's user study (a page of blinded videos for any static web host), and count its votes.

    ray job submit --working-dir . -- python jobs/user_study.py make \\
        --methods ours=/data/ours sonic=/data/sonic --page /data/study --key /data/study.key.json
    python jobs/user_study.py count --votes votes --key study.key.json --output counted
    python jobs/evaluate.py cross-driven ... --votes counted/ours/votes.json

The command needs no cluster. Each method's folder holds the method's videos as `<id>.mp4`. The examples are drawn at
random from the ids that occur in all folders. Upload the page's folder and nothing else, and give each rater an address
with a different number: `https://.../?rater=3`. Raters send back the file that the page makes at the end. Exit status:
0 done, 2 the command cannot be carried out, 3 some vote files were left out.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.command_line import run_command
from xactor_platform.evaluation.study import Key, common_examples, make_study
from xactor_platform.evaluation.votes import count_votes


@dataclass(frozen=True, kw_only=True)
class MakeStudy:
    """Make a page of several methods' videos, and the key that says which method made each video.

    Example: python jobs/user_study.py make --methods ours=ours/videos sonic=sonic --page study --key study.key.json
    """

    methods: tuple[str, ...]
    """The methods, each as name=folder; 2 to 26 methods."""
    page: Path
    """Folder for the page, new or empty."""
    key: Path
    """JSON file for the key, outside of the page's folder. Do not publish this file."""
    examples: int = 10
    """Number of examples that each rater sees, at least 1."""
    raters: int = 21
    """Number of raters, at least 1. The page shows each rater the videos in a different order."""
    seed: int | None = None
    """Seed of the examples, the blinded names and the orders. By default the seed is drawn at random. The key file
    records it."""

    def execute(self) -> int:
        methods: dict[str, Path] = {}
        for given in self.methods:
            name, equals, folder = given.partition("=")
            if not equals or name in methods:
                raise ValueError(f"methods must be name=folder, each name once, got {given!r}")
            methods[name] = Path(folder)
        key = make_study(
            methods, self.page, self.key, examples=self.examples, raters=self.raters, seed=self.seed
        )
        common = len(common_examples(methods))
        print(f"chose {len(key.examples)} of the {common} examples that all {len(methods)} methods have")
        print(f"written: {self.page}/index.html, and the key {self.key}")
        return 0


@dataclass(frozen=True, kw_only=True)
class CountVotes:
    """Compute each method's share of the votes, with standard errors over raters.

    Example: python jobs/user_study.py count --votes votes --key study.key.json --output counted
    """

    votes: tuple[Path, ...]
    """Vote files, or folders of *.json."""
    key: Path
    """JSON file of the study's key."""
    output: Path
    """Folder for vote_count.json, table.md and <method>/votes.json of each method."""

    def execute(self) -> int:
        files = [file for path in self.votes for file in (path.glob("*.json") if path.is_dir() else [path])]
        counted = count_votes(files, Key.load(self.key))
        counted.save(self.output)
        for line in counted.left_out:
            print(f"left out: {line}", file=sys.stderr)
        print(f"{counted.table()}\nwritten: {self.output}/vote_count.json, table.md, <method>/votes.json")
        return 3 if counted.left_out else 0


def main() -> int:
    commands = {"make": MakeStudy, "count": CountVotes}
    command: MakeStudy | CountVotes = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    return command.execute()


if __name__ == "__main__":
    run_command(main)
