"""What a dubbing run has done and taken so far: its progress, its metrics and its bill."""

import time
from collections import Counter as Count
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Gauge

from xactor_platform.dubbing.work import Done, Failed, Spent

STAGES = ("look", "decode", "motion", "render", "encode", "write")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """
    Attributes:
        made, there, failed: rows: made now, made before, and not to be made.
        video_s: seconds of the videos that were made now. stage_s: seconds of actors' time, by stage. wall_s: of the
            run.
    """

    made: int
    there: int
    failed: int
    video_s: float
    stage_s: dict[str, float]
    wall_s: float

    @property
    def actor_s_per_video_s(self) -> float:
        return sum(self.stage_s.values()) / max(self.video_s, 1e-9)

    def lines(self) -> list[str]:
        """For people."""
        stages = "  ".join(f"{name} {self.stage_s.get(name, 0.0):,.1f}" for name in STAGES)
        lines = [
            f"{self.made} made, {self.there} there already, {self.failed} failed in {self.wall_s:,.1f} s"
        ]
        if self.made:
            lines += [
                f"{self.video_s:,.1f} s of video for {sum(self.stage_s.values()):,.1f} s of actors' time: "
                f"{self.actor_s_per_video_s:,.2f} a second of video",
                f"by stage, in s: {stages}",
            ]
        return lines


@dataclass
class Tally:
    """Counts as results come, and says so through Ray's metrics."""

    rows: int
    left_s: float  # of video that is still to be made, as the files' headers have it
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.status: Count[str] = Count()
        self.video_s = 0.0
        self.stage_s: Spent = {}
        self._rows = Counter("xactor_dub_rows_total", "Rows by what became of them.", ("status",))
        self._video_s = Counter("xactor_dub_video_seconds_total", "Seconds of video made.")
        self._stage_s = Counter("xactor_dub_stage_seconds_total", "Seconds of actors' time.", ("stage",))
        self._left = Gauge("xactor_dub_rows_left", "Rows that are not finished.")
        self._left_s = Gauge("xactor_dub_seconds_left", "Seconds until the run is done, at its pace so far.")
        self._making_since: float | None = None
        self._show()

    @property
    def left(self) -> int:
        return self.rows - sum(self.status.values())

    def begin_making(self) -> None:
        """The pace counts from here on."""
        self._making_since = self._making_since or time.monotonic()

    def spend(self, spent: Spent) -> None:
        for stage, seconds in spent.items():
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + seconds
            self._stage_s.inc(seconds, {"stage": stage})

    def finish(self, result: Done | Failed, expected_s: float) -> None:
        """A row's end. expected_s: how much of what was to be made it was."""
        status = "failed" if isinstance(result, Failed) else "made" if result.made else "there"
        self.status[status] += 1
        self._rows.inc(1, {"status": status})
        self.left_s = max(self.left_s - expected_s, 0.0)
        if isinstance(result, Done) and result.made:
            self.video_s += result.seconds
            if result.seconds > 0:
                self._video_s.inc(result.seconds)
        self._show()

    @property
    def seconds_left(self) -> float | None:
        """None where nothing has been made to judge by."""
        if self._making_since is None or not self.video_s:
            return None
        return self.left_s * (time.monotonic() - self._making_since) / self.video_s

    def line(self) -> str:
        """Of progress."""
        left = self.seconds_left
        when = "" if left is None else f", {int(left) // 60}:{int(left) % 60:02d} left"
        failed = f", {self.status['failed']} failed" if self.status["failed"] else ""
        return f"{self.rows - self.left}/{self.rows} rows{failed}, {self.video_s:,.0f} s of video{when}"

    def bill(self) -> Bill:
        return Bill(
            made=self.status["made"],
            there=self.status["there"],
            failed=self.status["failed"],
            video_s=self.video_s,
            stage_s=self.stage_s,
            wall_s=time.monotonic() - self.begun,
        )

    def _show(self) -> None:
        self._left.set(self.left)
        if self.seconds_left is not None:
            self._left_s.set(self.seconds_left)
