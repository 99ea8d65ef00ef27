"""Write the report of a run: the fate of every clip as a Parquet table, and a web page with counts and histograms.

The fate of a clip tells whether the clip was kept, and why not.
"""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xactor_platform.curation.messages import Fate
from xactor_platform.storage.location import Location

REPORT, PAGE = "report.parquet", "report.html"
# Parquet types of the fields that are numbers. Every other field of a `Fate` is a string.
_ARROW_TYPES = {int: pa.int64(), float: pa.float64()}


def _arrow_type(annotation: Any) -> pa.DataType:
    """Return the Parquet type of a field of `Fate`, which may be optional."""
    for kind, arrow_type in _ARROW_TYPES.items():
        if annotation in (kind, kind | None):
            return arrow_type
    return pa.string()


_FIELD_TYPES = get_type_hints(Fate)
SCHEMA = pa.schema([(f.name, _arrow_type(_FIELD_TYPES[f.name])) for f in fields(Fate)])
# Columns that the page shows as histograms, and the title of each histogram, with its unit.
_HISTOGRAMS = (
    ("seconds", "length, s"),
    ("crop_px", "side of the face's square in the video, px"),
    ("outside", "fraction of the face's square outside the picture"),
    ("yaw", "head turned to the side, degrees"),
    ("roll", "head tilted, degrees"),
    ("lips", "movement of the lips"),
    ("blur", "blur, 0 sharp to 1"),
    ("occluded", "fraction of the frames in which something covers the face"),
    ("speech", "range of the sound's level, dB"),
    ("sync_confidence", "SyncNet's confidence"),
    ("sync_offset", "SyncNet's offset, frames"),
    ("own_similarity", "similarity of the face to the person's other clips"),
    ("other_similarity", "similarity of the face to the most similar other person"),
)
# Number of bars in a histogram, and its width and height in pixels.
_BINS, _WIDTH, _HEIGHT = 30, 420, 110
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.1rem .8rem .1rem 0;text-align:left}td.n{text-align:right}"
    "figure{display:inline-block;margin:0 1rem 1.5rem 0}figcaption{color:#555;font-size:13px}"
    ".kept{fill:#2a7de1}.not{fill:#c9c9c9}text{font-size:11px;fill:#555}"
)


def write_fates(place: Location, name: str, fates: Sequence[Fate]) -> None:
    """Write fates atomically as a Parquet table."""
    with place.atomic_write(name) as stream:
        pq.write_table(pa.Table.from_pylist([asdict(fate) for fate in fates], SCHEMA), stream)


def read_fates(place: Location, name: str) -> list[Fate]:
    """Read fates from a Parquet table."""
    with place.open(name) as file:
        return [Fate(**row) for row in pq.read_table(file).to_pylist()]


def page(fates: Sequence[Fate], title: str, people: Sequence[str]) -> str:
    """Return a web page without scripts: clips and hours by reason, and histograms of kept clips and other clips.

    Args:
        fates: fates of all clips and videos.
        title: title of the page.
        people: lines about the people in the kept clips.
    """

    def kept_and_frequent_first(item: tuple[tuple[str, str], int]) -> tuple[bool, int]:
        (status, _), count = item
        return status != "kept", -count

    counts = Counter((fate.status, fate.reason) for fate in fates)
    hours = {key: sum(f.seconds for f in fates if (f.status, f.reason) == key) / 3600 for key in counts}
    rows = "".join(
        f"<tr><td>{status}</td><td>{html.escape(reason)}</td><td class=n>{count:,}</td>"
        f"<td class=n>{hours[status, reason]:,.3f}</td></tr>"
        for (status, reason), count in sorted(counts.items(), key=kept_and_frequent_first)
    )
    weights = sorted({fate.syncnet for fate in fates if fate.syncnet})
    shown_weights = ", ".join(map(html.escape, weights)) or "none: lip-sync was not judged"
    items = "".join(f"<li>{html.escape(line)}" for line in people)
    histograms = "".join(_histogram(fates, name, label) for name, label in _HISTOGRAMS)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>SyncNet's weights: {shown_weights}</p>"
        f"<table><tr><th>fate<th>reason<th>clips<th>hours</tr>{rows}</table>"
        f"<h2>People</h2><ul>{items or '<li>none'}</ul>"
        f"<h2>Kept (blue) and not kept (gray)</h2>{histograms}</html>\n"
    )


def _histogram(fates: Sequence[Fate], name: str, label: str) -> str:
    """Return the HTML of a histogram of one column, or an empty text if no clip has a value.

    The bars are drawn as SVG. In each bar, the clips that were not kept are stacked on the kept ones.

    Args:
        fates: fates of clips and videos.
        name: name of the column, a field of `Fate`.
        label: title of the histogram.
    """

    def measured(kept: bool) -> np.ndarray:
        """Return the measured values of the kept clips or, if `kept` is False, of the other clips."""
        column = [getattr(f, name) for f in fates if f.clip and (f.status == "kept") == kept]
        return np.array([value for value in column if value is not None], float)

    values = {kept: measured(kept) for kept in (True, False)}
    both = np.concatenate([*values.values()])
    if not len(both):
        return ""
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    bars = {kept: np.histogram(v, edges)[0] for kept, v in values.items()}
    tallest = max(int((bars[True] + bars[False]).max()), 1)
    bar_px, rectangles = _WIDTH / _BINS, []
    for n in range(_BINS):
        # Upper edge of what is drawn so far, in pixels from the top of the picture.
        y = float(_HEIGHT)
        for kept, style in ((True, "kept"), (False, "not")):
            height = bars[kept][n] / tallest * _HEIGHT
            y -= height
            if height:
                rectangles.append(
                    f'<rect class={style} x="{n * bar_px:.1f}" y="{y:.1f}" width="{bar_px - 1:.1f}" '
                    f'height="{height:.1f}"/>'
                )
    axis = (
        f'<text x="0" y="{_HEIGHT + 14}">{edges[0]:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{edges[-1]:.3g}</text>'
    )
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}">{"".join(rectangles)}{axis}</svg>'
    return f"<figure>{svg}<figcaption>{html.escape(label)} (highest bar: {tallest})</figcaption></figure>"
