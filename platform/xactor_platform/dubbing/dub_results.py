"""Collect the results of a dubbing run: a line of results.jsonl for each row of the manifest, and the run's counts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xactor_platform.bulk.bill import Bill
from xactor_platform.bulk.tally import Tally
from xactor_platform.dubbing.messages import Done, Failed
from xactor_platform.storage.location import Location

RESULTS = "results.jsonl"
# Names of metrics.
ROWS, VIDEO_SECONDS = "xactor_dub_rows_total", "xactor_dub_video_seconds_total"
# Names of the stages, in the order of the bill. `look` reads a row's files and finds its video if it already exists.
STAGES = ("look", "decode", "motion", "render", "encode", "write")
# Number of finished rows between two writes of results.jsonl. Each write replaces the whole file, because object stores
# cannot append.
_SAVE_EVERY = 64


class StorageFailed(OSError):
    """Report that the output cannot be written.

    Finished videos are kept. The same command, run again, makes the other videos.
    """


@dataclass(frozen=True, kw_only=True)
class DubResult:
    """Hold the result of a dubbing run."""

    bill: Bill
    """Times and counts of the run. The figures `made`, `there` (videos that already existed) and `failed` count rows.
    The figure `video_s` is the total length of the videos that this run made, in seconds."""
    rows: list[dict[str, Any]]
    """Lines of results.jsonl in order."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Return the lines of the rows that failed."""
        return [row for row in self.rows if row["status"] != "ok"]

    def summary(self) -> list[str]:
        """Return lines about the bill for people to read."""
        bill, figures = self.bill, self.bill.figures
        lines = [
            f"{figures['made']} made, {figures['there']} already existed, {figures['failed']} failed "
            f"in {bill.wall_s:,.1f} s"
        ]
        if figures["made"]:
            video_s = figures["video_s"]
            rate = bill.actor_s / max(video_s, 1e-9)
            lines += [
                f"{video_s:,.1f} s of video, {rate:,.2f} s of actors' time for each second",
                bill.stages_line(),
            ]
        return lines


def dub_tally(rows: int) -> Tally:
    """Return an empty tally for a run of this many rows. It measures work in seconds of video."""
    return Tally(
        total=rows,
        stages=STAGES,
        counters={
            ROWS: ("Rows by result.", ("status",)),
            VIDEO_SECONDS: ("Seconds of video made.", ()),
        },
        stage_seconds="xactor_dub_stage_seconds_total",
        items_left="xactor_dub_rows_left",
        seconds_left="xactor_dub_seconds_left",
    )


def count_result(tally: Tally, result: Done | Failed, expected_s: float) -> None:
    """Add a row's result to the tally.

    Args:
        tally: tally of the run.
        result: result of the row.
        expected_s: expected length of the row's video in seconds, 0 if no video had to be made.
    """
    done_s = 0.0
    if isinstance(result, Failed):
        status = "failed"
    elif result.made:
        status = "made"
        done_s = result.seconds
    else:
        status = "there"
    tally.add(ROWS, status=status)
    tally.add(VIDEO_SECONDS, done_s)
    tally.finish_item(expected=expected_s, done=done_s)


class DubResults:
    """Collect one result for each row, and keep results.jsonl up to date.

    Later runs do not read results.jsonl. They recognise finished videos by the digest in each video's metadata.

    Args:
        output: folder or URI of the videos.
        tally: tally of the run.
        say: is called with lines of progress.
    """

    def __init__(self, output: str, tally: Tally, say: Callable[[str], None]):
        self.tally = tally
        self._place, self._say = Location.parse(output), say
        self._lines: dict[int, dict[str, Any]] = {}
        self._unsaved = 0

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    def finish(self, result: Done | Failed, expected_s: float) -> None:
        """Record a row's result. Later results of the same row change nothing.

        Args:
            result: result of the row.
            expected_s: see `count_result`.

        Raises:
            StorageFailed: the output cannot be written.
        """
        failed = isinstance(result, Failed)
        number = result.number if failed else result.row.number
        if number in self._lines:
            return
        if failed and result.code == "storage":
            self.save()
            raise StorageFailed(f"{self._place.uri}: {result.message}")
        self._lines[number] = {
            "id": result.id if failed else result.row.id,
            "row": number,
            "status": "failed" if failed else "ok",
            "frames": 0 if failed else result.frames,
            "seconds": 0.0 if failed else round(result.seconds, 3),
            "error": {"code": result.code, "message": result.message} if failed else None,
        }
        count_result(self.tally, result, expected_s)
        if failed:
            line = f"row {number}: {result.id}: {result.code}: {result.message}"
            # The id is the user's, and may hold line breaks and characters that cannot be printed.
            self._say(" ".join(line.encode("utf-8", "backslashreplace").decode().split()))
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self.save()
            self._say(self.progress())

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines in the rows' order."""
        return [line for _, line in sorted(self._lines.items())]

    def save(self) -> None:
        """Write results.jsonl."""
        self._unsaved = 0
        with self._place.atomic_write(RESULTS) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.rows()).encode())

    def progress(self) -> str:
        """Return a line of progress."""
        tally = self.tally
        failed = int(tally.sum(ROWS, status="failed"))
        failures = f", {failed} failed" if failed else ""
        video_s = tally.sum(VIDEO_SECONDS)
        return f"{tally.finished}/{tally.total} rows{failures}, {video_s:,.0f} s of video{tally.time_left()}"

    def bill(self) -> Bill:
        """Return the bill up to now."""
        made, existing, failed = (
            int(self.tally.sum(ROWS, status=status)) for status in ("made", "there", "failed")
        )
        return self.tally.bill(
            made=made, there=existing, failed=failed, video_s=self.tally.sum(VIDEO_SECONDS)
        )
