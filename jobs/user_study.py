"""The paper's user study: a page of blinded videos for any static host, and its votes as columns of Table 1.

    python jobs/user_study.py make --methods ours=evaluation/videos sonic=/data/sonic --page study --key study.key.json
    python jobs/user_study.py tally --votes votes --key study.key.json --output tally
    python jobs/evaluate.py cross-driven ... --votes tally/ours/votes.json

The folders hold `<id>.mp4`; ids that all of them have can become examples. Upload the page's folder and nothing else,
and give each rater a number: `https://.../?rater=3`. Raters send back the file that the page makes at the end.
Exit status: 0 done, 2 the command cannot be carried out, 3 some vote files were left out.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor_platform.evaluation.study import Key, common_examples, make_study
from xactor_platform.evaluation.votes import tally


@dataclass(frozen=True, kw_only=True)
class Make:
    """Videos of several methods into a page, and the key that tells whose they are."""

    methods: tuple[str, ...]
    """Each as name=folder."""
    page: Path
    key: Path
    """Outside of the page's folder; keep it to yourself."""
    examples: int = 10
    raters: int = 21
    """How many orders the page holds."""
    seed: int | None = None
    """Of names and orders; drawn if not given, and kept in the key."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Vote files into each method's shares, with standard errors over raters."""

    votes: tuple[Path, ...]
    """Files, or folders of *.json."""
    key: Path
    output: Path


def main() -> int:
    args = tyro.extras.subcommand_cli_from_dict({"make": Make, "tally": Tally})
    try:
        return _make(args) if isinstance(args, Make) else _tally(args)
    except (ValueError, OSError) as error:
        print(f"user_study: {error}", file=sys.stderr)
        return 2


def _make(args: Make) -> int:
    methods: dict[str, Path] = {}
    for given in args.methods:
        name, equals, folder = given.partition("=")
        if not equals or name in methods:
            raise ValueError(f"methods must be name=folder, each name once, got {given!r}")
        methods[name] = Path(folder)
    key = make_study(methods, args.page, args.key, examples=args.examples, raters=args.raters, seed=args.seed)
    there = len(common_examples(methods))
    print(f"{len(key.examples)} of the {there} examples that all {len(methods)} methods have")
    print(f"written: {args.page}/index.html, and outside of it {args.key}")
    return 0


def _tally(args: Tally) -> int:
    files = [file for path in args.votes for file in (path.glob("*.json") if path.is_dir() else [path])]
    counted = tally(files, Key.load(args.key))
    counted.save(args.output)
    for line in counted.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{counted.table()}\nwritten: {args.output}/tally.json, table.md, <method>/votes.json")
    return 3 if counted.left_out else 0


if __name__ == "__main__":
    sys.exit(main())
