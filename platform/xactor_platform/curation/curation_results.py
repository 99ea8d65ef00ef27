"""Hold the result of a curation run, and count its videos and clips."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from xactor_platform.bulk.bill import Bill
from xactor_platform.bulk.tally import Tally
from xactor_platform.curation.copies import DUPLICATE
from xactor_platform.curation.messages import Ended, Fate

# Names of the Ray metrics that count clips and seconds of video.
CLIPS, VIDEO_SECONDS = "xactor_curate_clips_total", "xactor_curate_video_seconds_total"
STAGES = ("probe", "scan", "track", "cut", "sync", "recognise", "write")


@dataclass(frozen=True, kw_only=True)
class CurationResult:
    """Hold the result of a curation run."""

    bill: Bill
    """Time that the run spent and work that it did. The bill's figures are `videos` (all videos), `there` (videos that
    earlier runs finished) and, for this run alone, `hours_in` (examined), `hours_kept`, `clips` (kept clips) and
    `fates`. `fates` counts clips by the reason for not keeping them, and kept clips as `kept`. A video that gave no
    clip counts as one clip."""
    fates: list[Fate]
    """Fates of all clips (whether each was kept, and why not), including those of earlier runs."""
    people: list[str]
    """Lines about the people in all kept clips, see `people_lines`."""

    @property
    def failed(self) -> list[Fate]:
        """Return the fates of the videos and clips that could not be examined."""
        return [fate for fate in self.fates if fate.status == "failed"]

    def summary(self) -> list[str]:
        """Return the bill and the lines about people as lines of text for people to read."""
        figures = self.bill.figures
        by_count = sorted(figures["fates"].items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{count} {name}" for name, count in by_count) or "nothing"
        return [
            f"{figures['videos']} videos, {figures['there']} of them finished before, in {self.bill.wall_s:,.1f} s",
            f"{figures['hours_in']:.3f} hours in, {figures['hours_kept']:.3f} hours kept in {figures['clips']} clips: "
            f"{reasons}",
            *self.people,
            self.bill.stages_line(),
        ]


class CurationTally:
    """Count the videos and clips of a run.

    Args:
        videos: number of videos.
        earlier: number of videos that earlier runs finished.
    """

    def __init__(self, videos: int, earlier: int):
        self.videos, self._earlier = videos, earlier
        self._tally = Tally(
            total=videos - earlier,
            stages=STAGES,
            counters={
                CLIPS: ("Clips by what became of them.", ("status", "reason")),
                VIDEO_SECONDS: ("Seconds of video.", ("kind",)),
            },
            stage_seconds="xactor_curate_stage_seconds_total",
            items_left="xactor_curate_videos_left",
            seconds_left="xactor_curate_seconds_left",
        )
        self._tally.start_pace(videos - earlier)
        # Number of clips by the reason for not keeping them, and the seconds of each kept clip.
        self._fates: Counter[str] = Counter()
        self._kept_s: dict[str, float] = {}

    def add(self, ended: Ended) -> None:
        """Count a finished piece or video.

        The actors' time always counts. Clips and seconds of video count only if this run finished the piece or video.
        """
        self._tally.add_seconds(ended.stage_s)
        if ended.earlier:
            return
        for fate in ended.fates:
            self._tally.add(CLIPS, status=fate.status, reason=fate.reason or "none")
            if fate.status == "kept":
                self._kept_s[fate.clip] = fate.seconds
                self._tally.add(VIDEO_SECONDS, fate.seconds, kind="kept")
            else:
                self._fates[fate.reason] += 1
        self._tally.add(VIDEO_SECONDS, ended.looked_s, kind="in")

    def drop_copies(self, clips: Iterable[str]) -> None:
        """Count kept clips as dropped copies. Metrics only grow, so they count these clips as kept and as dropped.

        Args:
            clips: keys of the copies. Those that this run did not keep do not count.
        """
        for clip in clips:
            if self._kept_s.pop(clip, None) is not None:
                self._fates[DUPLICATE] += 1
                self._tally.add(CLIPS, status="dropped", reason=DUPLICATE)

    def finish_video(self) -> None:
        """Count a video as finished."""
        self._tally.finish_item()

    @property
    def clips(self) -> int:
        """Return the number of clips kept in this run."""
        return len(self._kept_s)

    @property
    def finished(self) -> int:
        """Return the number of finished videos, including those of earlier runs."""
        return self._earlier + self._tally.finished

    def progress(self) -> str:
        """Return a line of progress."""
        kept_s, in_s = sum(self._kept_s.values()), self._tally.sum(VIDEO_SECONDS, kind="in")
        kept = f"{self.clips} clips, {kept_s / 60:,.1f} of {in_s / 60:,.1f} min kept"
        return f"{self.finished}/{self.videos} videos, {kept}{self._tally.time_left()}"

    def bill(self) -> Bill:
        """Return the bill up to now."""
        kept_s, in_s = sum(self._kept_s.values()), self._tally.sum(VIDEO_SECONDS, kind="in")
        return self._tally.bill(
            videos=self.videos,
            there=self._earlier,
            hours_in=in_s / 3600,
            hours_kept=kept_s / 3600,
            clips=self.clips,
            # The sum leaves out a count of zero.
            fates=dict(sorted((self._fates + Counter(kept=self.clips)).items())),
        )
