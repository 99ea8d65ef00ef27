"""Define the messages that stages pass to each other, and the tables in which Ray Data carries them.

A message is pickled into one binary column, so that Ray Data neither converts nor limits its arrays. The annotations of
a stage's methods state which messages it takes.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

COLUMN = "message"
"""Name of the only column of these tables."""
StageSeconds = dict[str, float]
"""Seconds of actors' time, by the name of the stage."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """Carry one unit of work, or its result, out of a stage.

    Attributes:
        finished: whether later stages pass the message on unchanged. Subclasses that hold final results set it to True.
    """

    finished: ClassVar[bool] = False

    stage_s: StageSeconds = field(default_factory=dict)
    """Seconds of actors' time that led to this message, by stage. If several messages come from one message, only the
    first of them carries the seconds of the earlier stages, so that no second is counted twice. Stages fill this in."""


def pack(message: Any) -> pa.Table:
    """Return a table that holds one message."""
    return pa.table({COLUMN: pa.array([pickle.dumps(message, protocol=5)], type=pa.large_binary())})


def unpack(table: pa.Table) -> Iterator[Any]:
    """Yield the messages of a table."""
    for cell in table[COLUMN]:
        yield pickle.loads(cell.as_buffer())


def empty_table() -> pa.Table:
    """Return a table without messages."""
    return pa.table({COLUMN: pa.array([], type=pa.large_binary())})


def add_seconds(a: StageSeconds, b: StageSeconds) -> StageSeconds:
    """Return the sum of the seconds in `a` and in `b` for each stage."""
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in {**a, **b}}
