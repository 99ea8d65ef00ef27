"""Stages: the actors that a pipeline passes messages through."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from xactor_platform.bulk.message import Message, add_seconds, empty_table, pack, unpack


class BatchStage(ABC):
    """Take the messages of a table together, and yield the messages that come of them.

    Attributes:
        name: of the stage in bills and metrics.
        node_group: value of the label `ray.io/node-group` of the nodes that the stage runs on when the pipeline uses
            node groups. Without one, a cluster could start any of its nodes for the stage.
    """

    name: ClassVar[str]
    node_group: ClassVar[str] = ""

    @abstractmethod
    def run_batch(self, messages: list[Any]) -> Iterator[Message]:
        """Yield what comes of several messages, each passed through `timed`."""

    @abstractmethod
    def failed(self, message: Any, error: Exception) -> Message:
        """Return the result of a message whose work raised an error.

        Raise the error again where the message is not at fault: its table is then lost, and the driver retries it in
        the next pass.
        """

    def timed(self, message: Any, made: Iterable[Message], took_s: float = 0.0) -> Iterator[Message]:
        """Yield what comes of a message, each result with its seconds; turn an exception into one failure.

        The first result also carries what earlier stages took for the message.

        Args:
            message: the message that is worked on.
            made: its results. Iterating over it does the work that is timed.
            took_s: seconds that the message took before.
        """
        begun = time.perf_counter() - took_s
        earlier = message.stage_s if isinstance(message, Message) else {}
        try:
            for one in made:
                took = {self.name: time.perf_counter() - begun}
                yield replace(one, stage_s=add_seconds(earlier, took))
                earlier, begun = {}, time.perf_counter()
        except Exception as error:
            result = self.failed(message, error)
            yield replace(result, stage_s=add_seconds(earlier, {self.name: time.perf_counter() - begun}))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Work on a table of messages as Ray Data passes it. Yield tables of one message each."""
        waiting = []
        for message in unpack(table):
            if isinstance(message, Message) and message.finished:
                yield pack(message)
            else:
                waiting.append(message)
        if waiting:
            for message in self.run_batch(waiting):
                yield pack(message)
        if not table.num_rows:
            yield empty_table()


class Stage(BatchStage):
    """Take one message after another."""

    @abstractmethod
    def work(self, message: Any) -> Iterable[Message]:
        """Return what comes of one message. The caller adds the seconds."""

    def run_batch(self, messages: list[Any]) -> Iterator[Message]:
        """Work on the messages in order."""
        for message in messages:
            yield from self.timed(message, self._made(message))

    def _made(self, message: Any) -> Iterator[Message]:
        """Yield what `work` returns. As a generator, it starts the work inside `timed` also where that is a list."""
        yield from self.work(message)
