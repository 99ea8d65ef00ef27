"""Count the votes of a user study (see `study`): each method's share of the choices, as in the paper's Table 1."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xactor_platform.evaluation.study import QUESTIONS, Key


@dataclass(frozen=True, kw_only=True)
class VoteCount:
    """Hold the shares of all methods."""

    raters: int
    """Number of raters whose votes count."""
    shares: dict[str, dict[str, float]]
    """Share of all choices by method and question. The shares of one question sum to 1."""
    errors: dict[str, dict[str, float]]
    """Standard errors of the shares over raters, by method and question. Empty for a single rater."""
    left_out: tuple[str, ...]
    """One line for each file that does not count, with the reason."""

    def table(self) -> str:
        """Return the shares in Markdown, with their standard errors."""

        def cell(method: str, question: str) -> str:
            share = f"{self.shares[method][question]:.3f}"
            error = self.errors.get(method, {}).get(question)
            return share if error is None else f"{share} ± {error:.3f}"

        lines = [
            f"| {self.raters} raters | " + " | ".join(f"{question} ↑" for question in QUESTIONS) + " |",
            "|---" * (len(QUESTIONS) + 1) + "|",
        ]
        for method in self.shares:
            lines.append(f"| {method} | " + " | ".join(cell(method, q) for q in QUESTIONS) + " |")
        return "\n".join(lines) + "\n"

    def save(self, output: Path) -> None:
        """Write vote_count.json, table.md and each method's `<method>/votes.json`, which the evaluation reads."""
        for method, shares in self.shares.items():
            (output / method).mkdir(parents=True, exist_ok=True)
            (output / method / "votes.json").write_text(json.dumps(shares, indent=2) + "\n")
        (output / "vote_count.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        (output / "table.md").write_text(self.table())


def count_votes(files: Iterable[Path], key: Key) -> VoteCount:
    """Count vote files. Leave out files of another study, incomplete files and a rater's second file, and say why.

    Args:
        files: Vote files, in any order.
        key: The study's key.

    Raises:
        ValueError: No file counts.
    """
    counted: dict[int, Path] = {}
    # Each element of `shares` is one rater's shares [methods, questions].
    shares, left_out = [], []
    for file in sorted(set(files)):
        try:
            rater, share = _read(file, key)
            if rater in counted:
                raise ValueError(f"duplicate: rater {rater} voted in {counted[rater]} already")
        except ValueError as error:
            left_out.append(f"{file}: {error}")
            continue
        counted[rater] = file
        shares.append(share)
    if not shares:
        raise ValueError("\n".join([f"no vote file counts, of {len(left_out)}", *left_out]))
    standard_error = np.std(shares, axis=0, ddof=1) / math.sqrt(len(shares)) if len(shares) > 1 else None
    return VoteCount(
        raters=len(shares),
        shares=_named(np.mean(shares, axis=0), key),
        errors={} if standard_error is None else _named(standard_error, key),
        left_out=tuple(left_out),
    )


def read_votes(path: Path) -> dict[str, float]:
    """Read one method's shares by question from its votes.json.

    Raises:
        ValueError: The file holds something else.
    """
    votes = _json(path)
    if not isinstance(votes, Mapping) or set(votes) != set(QUESTIONS):
        raise ValueError(f"{path}: votes must have the keys {', '.join(QUESTIONS)} and no others")
    for question, share in votes.items():
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"{path}: {question} must be within 0..1, got {share!r}")
    return dict(votes)


def _read(file: Path, key: Key) -> tuple[int, np.ndarray]:
    """Return the rater's number, and each method's share [methods, questions] of the rater's choices.

    Raises:
        ValueError: The file is not a complete vote file of this study.
    """
    ballot = _json(file)
    if not isinstance(ballot, Mapping) or ballot.get("study") != key.study:
        study = ballot.get("study") if isinstance(ballot, Mapping) else None
        raise ValueError(f"foreign: it must be of the study {key.study}, got {study!r}")
    rater: Any = ballot.get("rater")
    if rater not in range(1, key.raters + 1):
        raise ValueError(f"foreign: rater must be within 1..{key.raters}, got {rater!r}")
    chosen = _choices(ballot.get("votes"), key)
    share = np.zeros((len(key.methods), len(QUESTIONS)))
    for (_, question), method in chosen.items():
        share[key.methods.index(method), list(QUESTIONS).index(question)] += 1 / len(key.examples)
    return rater, share


def _choices(rows: Any, key: Key) -> dict[tuple[str, str], str]:
    """Return the chosen method by example and question. Raise ValueError if an answer is missing or faulty."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("foreign: its votes must be a list of answers by question")
    chosen: dict[tuple[str, str], str] = {}
    for question, name in [answer for row in rows for answer in row.items()]:
        if question not in QUESTIONS or not isinstance(name, str) or name not in key.videos:
            raise ValueError(f"foreign: {question!r} is answered by {name!r}, which the study does not have")
        method, example = key.videos[name]
        if (example, question) in chosen:
            raise ValueError(f"foreign: {question} of one example is answered twice")
        chosen[example, question] = method
    wanted = len(key.examples) * len(QUESTIONS)
    if len(chosen) < wanted:
        raise ValueError(f"incomplete: {wanted - len(chosen)} of {wanted} answers are missing")
    return chosen


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def _named(figures: np.ndarray, key: Key) -> dict[str, dict[str, float]]:
    """Return figures [methods, questions] as dictionaries by method and question."""
    return {
        method: dict(zip(QUESTIONS, row, strict=True))
        for method, row in zip(key.methods, figures.tolist(), strict=True)
    }
