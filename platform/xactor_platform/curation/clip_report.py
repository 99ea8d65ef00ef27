"""The report of a run: the fate of every clip in Parquet, and an HTML page with counts and histograms."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xactor_platform.curation.messages import Fate
from xactor_platform.storage.location import Location

REPORT, PAGE = "report.parquet", "report.html"
_TYPES = {int: pa.int64(), float: pa.float64()}
_KINDS = get_type_hints(Fate)
SCHEMA = pa.schema(
    [
        (
            f.name,
            next((t for kind, t in _TYPES.items() if _KINDS[f.name] in (kind, kind | None)), pa.string()),
        )
        for f in fields(Fate)
    ]
)
# Columns that are drawn, and their titles with units.
_HISTOGRAMS = (
    ("seconds", "length, s"),
    ("crop_px", "side of the face's square in the video, px"),
    ("blur", "blur, 0 sharp to 1"),
    ("occluded", "fraction of the frames in which something covers the face"),
    ("speech", "range of the sound's level, dB"),
    ("sync_confidence", "SyncNet's confidence"),
    ("sync_offset", "SyncNet's offset, frames"),
)
_BINS, _WIDTH, _HEIGHT = 30, 420, 110
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.1rem .8rem .1rem 0;text-align:left}td.n{text-align:right}"
    "figure{display:inline-block;margin:0 1rem 1.5rem 0}figcaption{color:#555;font-size:13px}"
    ".kept{fill:#2a7de1}.not{fill:#c9c9c9}text{font-size:11px;fill:#555}"
)


def write_fates(place: Location, name: str, fates: Sequence[Fate]) -> None:
    """Write a table of fates, whole or not at all."""
    with place.atomic_write(name) as stream:
        pq.write_table(pa.Table.from_pylist([asdict(fate) for fate in fates], SCHEMA), stream)


def read_fates(place: Location, name: str) -> list[Fate]:
    """Read a table of fates."""
    with place.open(name) as file:
        return [Fate(**row) for row in pq.read_table(file).to_pylist()]


def page(fates: Sequence[Fate], title: str) -> str:
    """Return an HTML page without scripts: counts and hours by reason, and histograms of kept and other clips."""
    counts = Counter((fate.status, fate.reason) for fate in fates)
    hours = {key: sum(f.seconds for f in fates if (f.status, f.reason) == key) / 3600 for key in counts}
    rows = "".join(
        f"<tr><td>{status}</td><td>{html.escape(reason)}</td><td class=n>{count:,}</td>"
        f"<td class=n>{hours[status, reason]:,.3f}</td></tr>"
        for (status, reason), count in sorted(
            counts.items(), key=lambda item: (item[0][0] != "kept", -item[1])
        )
    )
    weights = sorted({fate.syncnet for fate in fates if fate.syncnet})
    judged = ", ".join(map(html.escape, weights)) or "none: lip-sync was not judged"
    pictures = "".join(_histogram(fates, name, label) for name, label in _HISTOGRAMS)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>SyncNet's weights: {judged}</p>"
        f"<table><tr><th>fate<th>reason<th>clips<th>hours</tr>{rows}</table>"
        f"<h2>Kept (blue) and not kept (gray)</h2>{pictures}</html>\n"
    )


def _histogram(fates: Sequence[Fate], name: str, label: str) -> str:
    """Return stacked bars as SVG, empty where nothing was measured."""
    values = {
        kept: np.array(
            [
                v
                for f in fates
                if f.clip and (f.status == "kept") == kept and (v := getattr(f, name)) is not None
            ],
            float,
        )
        for kept in (True, False)
    }
    both = np.concatenate([*values.values()])
    if not len(both):
        return ""
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    bars = {kept: np.histogram(v, edges)[0] for kept, v in values.items()}
    tallest = max(int((bars[True] + bars[False]).max()), 1)
    wide, svg = _WIDTH / _BINS, []
    for n in range(_BINS):
        base = float(_HEIGHT)
        for kept, kind in ((True, "kept"), (False, "not")):
            tall = bars[kept][n] / tallest * _HEIGHT
            base -= tall
            if tall:
                svg.append(
                    f'<rect class={kind} x="{n * wide:.1f}" y="{base:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}"/>'
                )
    axis = (
        f'<text x="0" y="{_HEIGHT + 14}">{edges[0]:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{edges[-1]:.3g}</text>'
    )
    drawn = f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}">{"".join(svg)}{axis}</svg>'
    return f"<figure>{drawn}<figcaption>{html.escape(label)} (highest bar: {tallest})</figcaption></figure>"
