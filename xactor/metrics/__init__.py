"""Compute the paper's metrics of videos (Paper 4.1). Each file holds one metric with its protocol and source."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """Hold the value of a metric and its basis."""

    value: float
    """Value in the metric's own unit."""
    count: int
    """Number of windows, frames or videos; the metric says which."""
    weights: str
    """Weights of the network: published ones by name, another file by name and digest, or "random weights". Compare
    only scores of the same weights."""
    note: str = ""
    """Remark that the reader of the value needs, or an empty string."""
