"""The paper's numbers about a video (Paper 4.1): one metric a file, each with its protocol and its source."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value and what it stands on.

    Attributes:
        value: in the metric's own unit.
        count: how many windows, frames or videos it was taken over; the metric says which.
        weights: which weights made it: published ones by name, another file by name and digest, or "random weights".
            Only scores of the same weights compare.
        note: what the reader of the value has to know, empty where there is nothing.
    """

    value: float
    count: int
    weights: str
    note: str = ""
