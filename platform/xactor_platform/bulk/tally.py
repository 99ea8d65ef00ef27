"""Count the work of a run in progress, for its bill and as Ray metrics."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from xactor_platform.bulk.bill import Bill
from xactor_platform.bulk.message import StageSeconds


class Tally:
    """Count what a run has done, estimate when it ends, and publish both as metrics.

    Callers give metrics by their full names, so that a text search for a metric finds the pipeline that publishes it.

    Args:
        total: number of items that the run finishes one by one, such as rows.
        stages: names of the stages, in the order of the bill.
        counters: description and labels of each counter, by the metric's name.
        stage_seconds: name of the metric that counts seconds of actors' time, with the label `stage`.
        items_left: name of the metric that shows the number of unfinished items.
        seconds_left: name of the metric that shows the estimated seconds until the run ends.
        begun: value of `time.monotonic()` at the start of the run, by default now.
    """

    def __init__(
        self,
        *,
        total: int,
        stages: Sequence[str],
        counters: Mapping[str, tuple[str, tuple[str, ...]]],
        stage_seconds: str,
        items_left: str,
        seconds_left: str,
        begun: float | None = None,
    ):
        self.total, self.left = total, total
        self.stage_s: StageSeconds = dict.fromkeys(stages, 0.0)
        # A key is the name of a counter, followed by the values of its labels.
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._labels = {name: labels for name, (_, labels) in counters.items()}
        self._counters = {
            name: Counter(name, description, labels) for name, (description, labels) in counters.items()
        }
        self._stage_s_counter = Counter(stage_seconds, "Seconds of actors' time by stage.", ("stage",))
        self._left_gauge = Gauge(items_left, "Items that are not finished.")
        self._left_s_gauge = Gauge(seconds_left, "Seconds until the run ends, at its pace so far.")
        self._begun = time.monotonic() if begun is None else begun
        self._pace_begun: float | None = None
        self._work_left = self._work_done = 0.0
        self._publish()

    def add_seconds(self, stage_s: StageSeconds) -> None:
        """Count seconds of actors' time."""
        for stage, seconds in stage_s.items():
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + seconds
            if seconds > 0:
                self._stage_s_counter.inc(seconds, {"stage": stage})

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter. An amount of zero changes nothing.

        Args:
            name: name of the counter's metric.
            amount: amount to add, at least 0.
            labels: value of each label of the counter, by label.
        """
        if amount > 0:
            self._sums[name, *(labels[label] for label in self._labels[name])] += amount
            self._counters[name].inc(amount, labels)

    def sum(self, name: str, **labels: str) -> float:
        """Return a counter's sum. Only amounts that were added with the given labels count; other labels may vary."""
        label_names = self._labels[name]
        # `<=` on items tests whether the given labels are a subset of the entry's labels.
        return sum(
            amount
            for (counter, *values), amount in self._sums.items()
            if counter == name and labels.items() <= dict(zip(label_names, values, strict=True)).items()
        )

    def start_pace(self, work: float) -> None:
        """Start the clock of the time estimate. Later calls change nothing.

        Args:
            work: amount of work that is left, in any unit. `finish_item` takes amounts in the same unit.
        """
        if self._pace_begun is None:
            self._pace_begun = time.monotonic()
            self._work_left = work

    def finish_item(self, *, expected: float = 1.0, done: float = 1.0) -> None:
        """Count one item as finished.

        Args:
            expected: work that the item was expected to need, in the unit of `start_pace`.
            done: work that was done for the item, 0 if it failed or already existed.
        """
        self.left -= 1
        self._work_left = max(self._work_left - expected, 0.0)
        self._work_done += done
        self._publish()

    @property
    def finished(self) -> int:
        """Return the number of finished items."""
        return self.total - self.left

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until the run ends at its pace so far; None while nothing has been done."""
        if self._pace_begun is None or not self._work_done:
            return None
        return self._work_left * (time.monotonic() - self._pace_begun) / self._work_done

    def time_left(self) -> str:
        """Return the time left, as `, m:ss left` to append to a line of progress; empty while nothing has been done."""
        left = self.seconds_left
        return "" if left is None else f", {int(left) // 60}:{int(left) % 60:02d} left"

    def bill(self, **figures: Any) -> Bill:
        """Return the bill up to now.

        Args:
            figures: the pipeline's own counts, by name.
        """
        return Bill(figures=figures, stage_s=dict(self.stage_s), wall_s=time.monotonic() - self._begun)

    def _publish(self) -> None:
        self._left_gauge.set(self.left)
        if self.seconds_left is not None:
            self._left_s_gauge.set(self.seconds_left)
