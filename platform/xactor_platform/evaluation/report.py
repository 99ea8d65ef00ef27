"""Write an evaluation's results: report.json, a table with the columns of the paper's Table 1, and some frames."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xactor.media import read_frames
from xactor.metrics.fvd import VideoStatistics, fvd
from xactor_platform.evaluation.pairs import Pair
from xactor_platform.evaluation.scoring import Judged
from xactor_platform.evaluation.study import QUESTIONS

# Columns of the table in each setting (see `pairs`). The arrow shows whether larger or smaller values are better.
SELF_DRIVEN = ("SynC ↑", "SynD ↓", "FVD ↓", "DGlo ↓", "DExp ↓", "DEmo ↓")
CROSS_DRIVEN = ("SynC ↑", "SynD ↓", "Glo ↑", "Exp ↑", *(f"{name} ↑" for name in QUESTIONS))
# Columns that the paper does not have.
OURS = ("identity ↑", "length_s")
# The paper's own method: the last row of Table 1.
PAPER = {
    "self-driven": {"SynC": 6.33, "SynD": 7.21, "FVD": 278.3, "DGlo": 0.021, "DExp": 0.005, "DEmo": 0.37},
    "cross-driven": {
        "SynC": 5.63, "SynD": 8.72, "Glo": 0.144, "Exp": 0.034,
        "Syn": 0.761, "Div": 0.741, "Emo": 0.720, "VQ": 0.736,
    },
}  # fmt: skip
# Rows and columns of frames.png, and the side of its pictures in pixels.
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_PX = 8, 8, 128


def means(results: list[Judged], totals: Mapping[str, VideoStatistics]) -> dict[str, float]:
    """Return the mean of every column over the videos that have a score in the column, and FVD over all videos.

    `length_s` is the length of the sound minus that of the pictures, so its absolute value is averaged.

    Args:
        results: results of the videos.
        totals: statistics for FVD: of all generated frames as `made`, and of all true frames as `true`. FVD needs both.
    """
    columns = {name for judged in results for name in judged.scores}
    found = {}
    for name in sorted(columns):
        values = np.array([judged.scores[name] for judged in results if name in judged.scores])
        found[name] = float(np.abs(values).mean() if name == "length_s" else values.mean())
    if _has_fvd(totals):
        found["FVD"] = fvd(totals["made"], totals["true"]).value
    return found


def _has_fvd(totals: Mapping[str, VideoStatistics]) -> bool:
    """Return whether there are statistics of both the generated and the true frames."""
    return "made" in totals and "true" in totals


def table(
    setting: str,
    found: Mapping[str, float],
    weights: Mapping[str, str],
    notes: list[str],
    votes: Mapping[str, float],
) -> str:
    """Return a Markdown table with the columns of Table 1. `-` marks columns that were not measured.

    Args:
        setting: `self-driven` or `cross-driven`.
        found: means by column, without the columns' arrows.
        weights: names of the weights, by the metrics that use them.
        notes: lines below the table.
        votes: shares of a user study by question, empty without a study.
    """
    columns = SELF_DRIVEN if setting == "self-driven" else CROSS_DRIVEN
    columns = (*columns, *OURS)

    def cell(values: Mapping[str, float], column: str) -> str:
        # The keys of `values` lack the arrow of the column's title.
        name = column.split()[0]
        return f"{values[name]:.4g}" if name in values else "-"

    def row(title: str, values: Mapping[str, float]) -> str:
        return f"| {title} | " + " | ".join(cell(values, column) for column in columns) + " |"

    lines = [
        f"| {setting} | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        row("this", {**found, **votes}),
        row("paper's X-Actor", PAPER[setting]),
        "",
        *(f"- {metric}: {made_by}" for metric, made_by in sorted(weights.items())),
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def write_report(
    setting: str,
    pairs: list[Pair],
    results: list[Judged],
    weights: dict[str, str],
    totals: Mapping[str, VideoStatistics],
    videos: Path,
    output: Path,
    *,
    facts: dict[str, Any],
    votes: Mapping[str, float],
) -> str:
    """Write report.json, table.md and frames.png to `output`. Return the table.

    Args:
        setting: `self-driven` or `cross-driven`.
        pairs: pairs of the evaluation.
        results: result of each pair.
        weights: names of the weights, by the metrics that use them, such as `SynC, SynD`.
        totals: statistics for FVD of all videos together. See `means`.
        videos: folder of the generated videos.
        output: folder of the report.
        facts: further entries of report.json.
        votes: shares of a user study by question, empty without a study.
    """
    judged = [result for result in results if not result.error]
    found = means(judged, totals)
    notes = [f"{len(judged)} of {len(results)} videos"]
    if _has_fvd(totals):
        notes.append(
            f"FVD over {totals['made'].count} windows of generated and {totals['true'].count} of true frames"
        )
        note = fvd(totals["made"], totals["true"]).note
        if note:
            notes.append(note)
    syncnet = weights.get("SynC, SynD")
    has_published_syncnet = syncnet is None or syncnet == "published" or "syncnet_v2" in syncnet
    if not has_published_syncnet:
        notes.append("SynC and SynD are not of the published SyncNet; do not compare them with the paper's")
    text = table(setting, found, weights, notes, votes)
    report = {
        **facts,
        "setting": setting,
        "means": found,
        "votes": dict(votes),
        "weights": weights,
        "notes": notes,
        "videos": [asdict(result) for result in results],
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "table.md").write_text(text)
    done = {result.id for result in judged}
    rows = [_row(videos / f"{pair.id}.mp4") for pair in pairs if pair.id in done][:_SHEET_ROWS]
    if rows:
        Image.fromarray(np.concatenate(rows)).save(output / "frames.png")
    return text


def _row(video: Path) -> np.ndarray:
    """Return frames at equal intervals of a video, next to each other, uint8 [H, W, 3]."""
    count = sum(1 for _ in read_frames(video))
    wanted = set(np.linspace(0, count - 1, _SHEET_COLUMNS).astype(int).tolist())
    tiles = [
        np.asarray(Image.fromarray(frame).resize((_SHEET_PX, _SHEET_PX), Image.Resampling.BICUBIC))
        for number, frame in enumerate(read_frames(video))
        if number in wanted
    ]
    # A video with too few frames gets white tiles.
    tiles += [np.full((_SHEET_PX, _SHEET_PX, 3), 255, np.uint8)] * (_SHEET_COLUMNS - len(tiles))
    return np.concatenate(tiles, axis=1)
