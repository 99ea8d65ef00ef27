"""What a curation run has done and taken so far: its progress, its metrics and its bill."""

import time
from collections import Counter as Count
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.util.metrics import Counter, Gauge

from xactor_platform.bulk.pool import Spent, added
from xactor_platform.curation.work import Ended

STAGES = ("probe", "scan", "track", "cut", "sync", "write")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """
    Attributes:
        videos, there: that there are, and that an earlier run had finished.
        hours_in, hours_kept, clips: of what was looked at in this run, and of what is kept of it.
        fates: clips, and videos without any, by status and reason.
        stage_s: seconds of actors' time, by stage. wall_s: of the run.
    """

    videos: int
    there: int
    hours_in: float
    hours_kept: float
    clips: int
    fates: dict[str, int]
    stage_s: Spent
    wall_s: float

    def lines(self) -> list[str]:
        """For people."""
        stages = "  ".join(f"{name} {self.stage_s.get(name, 0.0):,.1f}" for name in STAGES)
        why = ", ".join(
            f"{count} {name}" for name, count in sorted(self.fates.items(), key=lambda item: -item[1])
        )
        total = sum(self.stage_s.values())
        return [
            f"{self.videos} videos, {self.there} of them finished before, in {self.wall_s:,.1f} s",
            f"{self.hours_in:.3f} hours in, {self.hours_kept:.3f} hours kept in {self.clips} clips: {why or 'nothing'}",
            f"{total:,.1f} s of actors' time, by stage: {stages}",
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """Counts as results come, and says so through Ray's metrics.

    there: videos that an earlier run had finished.
    """

    videos: int
    there: int
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.left, self.clips = self.videos - self.there, 0
        self.looked_s = self.kept_s = 0.0
        self.fates: Count[str] = Count()
        self.stage_s: Spent = {}
        self._clips = Counter(
            "xactor_curate_clips_total", "Clips by what became of them.", ("status", "reason")
        )
        self._video_s = Counter("xactor_curate_video_seconds_total", "Seconds of video.", ("kind",))
        self._stage_s = Counter("xactor_curate_stage_seconds_total", "Seconds of actors' time.", ("stage",))
        self._left = Gauge("xactor_curate_videos_left", "Videos that are not finished.")
        self._left_s = Gauge(
            "xactor_curate_seconds_left", "Seconds until the run is done, at its pace so far."
        )
        self._left.set(self.left)

    def add(self, ended: Ended) -> None:
        """A piece's end, or a video's."""
        self.stage_s = added(self.stage_s, ended.spent)
        for stage, seconds in ended.spent.items():
            self._stage_s.inc(seconds, {"stage": stage})
        for fate in ended.fates:
            self.fates[fate.reason or fate.status] += 1
            self._clips.inc(1, {"status": fate.status, "reason": fate.reason or "none"})
            if fate.status == "kept":
                self.clips += 1
                self.kept_s += fate.seconds
                self._seconds("kept", fate.seconds)
        self.looked_s += ended.looked_s
        self._seconds("in", ended.looked_s)

    def video_done(self) -> None:
        self.left -= 1
        self._left.set(self.left)
        if (left_s := self.seconds_left) is not None:
            self._left_s.set(left_s)

    @property
    def seconds_left(self) -> float | None:
        """None where nothing is finished to judge by."""
        done = self.videos - self.there - self.left
        return (time.monotonic() - self.begun) / done * self.left if done else None

    def line(self) -> str:
        """Of progress."""
        left = self.seconds_left
        when = "" if left is None else f", {int(left) // 60}:{int(left) % 60:02d} left"
        kept = f"{self.clips} clips, {self.kept_s / 60:,.1f} of {self.looked_s / 60:,.1f} min kept"
        return f"{self.videos - self.left}/{self.videos} videos, {kept}{when}"

    def bill(self) -> Bill:
        return Bill(
            videos=self.videos,
            there=self.there,
            hours_in=self.looked_s / 3600,
            hours_kept=self.kept_s / 3600,
            clips=self.clips,
            fates=dict(sorted(self.fates.items())),
            stage_s=self.stage_s,
            wall_s=time.monotonic() - self.begun,
        )

    def _seconds(self, kind: str, seconds: float) -> None:
        if seconds > 0:
            self._video_s.inc(seconds, {"kind": kind})
