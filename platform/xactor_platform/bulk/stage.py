"""Define stages, the classes of the actors that a pipeline passes messages through."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from xactor_platform.bulk.message import Message, add_seconds, empty_table, pack, unpack


class BatchStage(ABC):
    """Process all messages of a table together, and yield the resulting messages.

    Attributes:
        name: name of the stage in bills and metrics.
        node_group: value of the label `ray.io/node-group` on the nodes that the stage runs on, if the pipeline uses
            node groups. Without the label, an autoscaler could start a node of any group for the stage.
    """

    name: ClassVar[str]
    node_group: ClassVar[str] = ""

    @abstractmethod
    def run_batch(self, messages: list[Any]) -> Iterator[Message]:
        """Yield the results of several messages. Most implementations pass each message's results through `timed`."""

    @abstractmethod
    def failed(self, message: Any, error: Exception) -> Message:
        """Return the result of a message whose work raised an error.

        Implementations raise the error again if the message did not cause the error. The message's table is then lost,
        and the driver runs its messages again in the next pass.
        """

    def timed(self, message: Any, results: Iterable[Message], took_s: float = 0.0) -> Iterator[Message]:
        """Yield the results of a message, with the seconds that each took. An exception becomes the result of `failed`.

        The first result also carries the seconds of earlier stages.

        Args:
            message: the message that is processed.
            results: the results of the message. The iteration over them does the work that is timed.
            took_s: seconds that this stage has already spent on the message.
        """
        begun = time.perf_counter() - took_s
        earlier_s = message.stage_s if isinstance(message, Message) else {}
        try:
            for result in results:
                own_s = {self.name: time.perf_counter() - begun}
                yield replace(result, stage_s=add_seconds(earlier_s, own_s))
                earlier_s, begun = {}, time.perf_counter()
        except Exception as error:
            failure = self.failed(message, error)
            yield replace(failure, stage_s=add_seconds(earlier_s, {self.name: time.perf_counter() - begun}))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Process a table of messages from Ray Data. Yield tables of one message each, first the finished messages."""
        unfinished = []
        for message in unpack(table):
            if isinstance(message, Message) and message.finished:
                yield pack(message)
            else:
                unfinished.append(message)
        if unfinished:
            for message in self.run_batch(unfinished):
                yield pack(message)
        # A call yields at least one table, even if its input is empty.
        if not table.num_rows:
            yield empty_table()


class Stage(BatchStage):
    """Process one message at a time."""

    @abstractmethod
    def work(self, message: Any) -> Iterable[Message]:
        """Return the results of one message. The caller sets the `stage_s` of the results."""

    def run_batch(self, messages: list[Any]) -> Iterator[Message]:
        """Process the messages in order."""
        for message in messages:
            yield from self.timed(message, self._work_lazily(message))

    def _work_lazily(self, message: Any) -> Iterator[Message]:
        """Yield the results of `work`, which starts only when `timed` iterates over this generator."""
        yield from self.work(message)
