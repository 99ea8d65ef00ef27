"""A stage's actors: they take one piece of work after another, and what fails is the row's failure, not the job's."""

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from xactor.decoding import Refused
from xactor_platform.bulk.pool import Spent, added, nothing, pack, unpack
from xactor_platform.dubbing.work import Done, Failed, Part, Row

# What no other row would fare better with: the disk is full, or the place may not be written to.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Stage(ABC):
    """One actor of a stage, as Ray Data calls it: a table of work in, tables of one piece of work each out.

    Attributes:
        group: of nodes that it runs on where the cluster has such: up to the motion model on its nodes, from the
            renderer on the renderer's. Without a group, a cluster could start its training nodes for it.
    """

    name: ClassVar[str]
    group: ClassVar[str]

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        waiting = []
        for work in unpack(table):
            if isinstance(work, Failed | Part | Done):  # nothing is left to do for it here
                yield pack(work)
            else:
                waiting.append(work)
        if waiting:
            for made in self.run(waiting):
                yield pack(made)
        if not table.num_rows:
            yield nothing()

    @abstractmethod
    def run(self, waiting: list[Any]) -> Iterator[Any]:
        """All that comes of several pieces of work."""


class OneByOne(Stage):
    """A stage that takes one piece of work after another."""

    def run(self, waiting: list[Any]) -> Iterator[Any]:
        for work in waiting:
            begun = time.perf_counter()
            try:
                for made in self.work(work):
                    took = time.perf_counter() - begun
                    yield replace(made, spent=added(made.spent, {self.name: took}))
                    begun = time.perf_counter()
            except Exception as error:
                took = time.perf_counter() - begun
                yield failure(row_of(work), error, added(getattr(work, "spent", {}), {self.name: took}))

    @abstractmethod
    def work(self, work: Any) -> Iterator[Any]:
        """What comes of one piece of work. The time it has taken so far is in its `spent`; this stage's is added."""


def failure(row: Row, error: Exception, spent: Spent) -> Failed:
    """In one line, what went wrong."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _STORAGE:
        code = "storage"
    elif isinstance(error, Refused):
        code = error.code
    else:
        code = "failed"
        if not isinstance(error, ValueError | OSError):
            message = f"{type(error).__name__}: {message}"
    return Failed(number=row.number, id=row.id, code=code, message=message, spent=spent)


def row_of(work: Any) -> Row:
    """Whose work it is, in whichever state."""
    for name in ("segment", "dub", "row"):
        work = getattr(work, name, work)
    return work
