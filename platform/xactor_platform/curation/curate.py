"""Run curation: pass videos through the stages, write their clips into shards, and report on each clip.

    probe -> scan -> track -> cut -> sync -> recognise -> write | decide | assemble

Ray Data runs the stages up to `write`, which saves the finished clips one by one. When all videos are finished, the
driver compares the clips: it decides who is who, which people are held out, and which clips are copies. Then `assemble`
tasks write the shards of each group of videos.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError, RayTaskError

from xactor_platform.bulk.pipeline import PendingTasks, Pipeline, Step, run_passes
from xactor_platform.cluster.capacity import check_pools_fit
from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.assemble import REPORTS, assemble
from xactor_platform.curation.clip_report import PAGE, REPORT, page, read_fates, write_fates
from xactor_platform.curation.copies import identical_fate, identical_files
from xactor_platform.curation.curation_config import CurationConfig
from xactor_platform.curation.curation_results import CurationResult, CurationTally
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.group_plan import GroupPlan
from xactor_platform.curation.lips import NO_SYNCNET, Sync, syncnet_facts
from xactor_platform.curation.messages import Ended, Fate, Video, fate_of
from xactor_platform.curation.people import (
    KnownClip,
    Rules,
    decide,
    known_clip,
    read_people,
    write_people,
)
from xactor_platform.curation.people_report import people_lines
from xactor_platform.curation.probe import Probe
from xactor_platform.curation.recognise import (
    MISSING_IDENTITY,
    NO_IDENTITY,
    Recognise,
    identity_facts,
    installed_identity,
)
from xactor_platform.curation.scan import Scan
from xactor_platform.curation.track import Track
from xactor_platform.curation.video_files import common_folder
from xactor_platform.curation.video_progress import PROGRESS_FOLDER, VideoProgress
from xactor_platform.curation.write import Write
from xactor_platform.data.index_file import load_index
from xactor_platform.storage.location import Location, check_output

# File with the time that the run spent and the work that it did.
BILL = "bill.json"
# Maximum number of groups that are assembled concurrently.
_MAX_ASSEMBLING = 8
# Number of videos that finish between two lines of progress.
_SAY_EVERY = 20


class TooManyFailed(ValueError):
    """Report that too many videos failed. Finished work is kept; running the same command again continues from it."""


def curate(
    config: CurationConfig, *, connect: Callable[[], None], say: Callable[[str], None]
) -> CurationResult:
    """Curate all videos that earlier runs did not finish, write shards of their clips, and return the result.

    Args:
        config: configuration of the run.
        connect: connects to the Ray cluster. It is called after the videos, SyncNet and the output were found valid.
        say: is called with lines of progress.

    Raises:
        ValueError: an option or an input is invalid. No work has started.
        TooManyFailed: more than the allowed fraction of the videos failed (`CurationConfig.max_failed`).
    """
    videos, refused = find_videos(config.videos, config.dataset, config.metadata)
    facts = facts_of(config, [*videos, *(fate for _, fate in refused)])
    check_output(config.output)
    keys = [*(video.key for video in videos), *(key for key, _ in refused)]
    plan = GroupPlan.update(config, facts, keys)
    if facts["identity"]["weights"] is None and config.identity != NO_IDENTITY:
        say(MISSING_IDENTITY)
    connect()
    check_pools_fit(config.pools.min_cpus)
    return CurationRun(config, plan, facts, say).make(videos, refused)


def facts_of(config: CurationConfig, listed: Sequence[Video | Fate]) -> dict[str, Any]:
    """Return the properties of the models and the videos on which a run's shards depend, by name.

    Args:
        config: configuration of the run.
        listed: all videos, also refused ones.

    Raises:
        ValueError: a model cannot be loaded.
    """
    speakers = "as listed"
    if not config.speakers_are_listed:
        names = [entry.name if isinstance(entry, Video) else entry.video for entry in listed]
        speakers = f"folders below {common_folder(names) or '.'}"
    return {
        "syncnet": syncnet_facts(config.syncnet, config.gates.min_confidence),
        "identity": identity_facts(installed_identity(config.identity), config.min_similarity),
        "speakers": speakers,
    }


class CurationRun:
    """Run curation over videos.

    Args:
        config: configuration of the run.
        plan: assigns all videos to groups.
        facts: see `facts_of`.
        say: is called with lines of progress.
    """

    stages: ClassVar[tuple[type[CurationStage], ...]] = (
        Probe,
        Scan,
        Track,
        Cut,
        Sync,
        Recognise,
        Write,
    )

    def __init__(
        self, config: CurationConfig, plan: GroupPlan, facts: dict[str, Any], say: Callable[[str], None]
    ):
        self._config, self._say, self._plan, self._facts = config, say, plan, facts
        self._place = Location.parse(config.output)
        self._rules = Rules(
            min_similarity=facts["identity"]["min_similarity"],
            speakers_are_listed=config.speakers_are_listed,
            max_copied=config.gates.max_copied,
            held_out=config.held_out,
            seed=config.seed,
        )
        # Numbers of the finished pieces of each unfinished video, by the video's key.
        self._pieces: dict[str, set[int]] = {}
        # Clips that passed the gates, by the key of their video.
        self._clips: dict[str, list[KnownClip]] = {}
        # Keys of the finished videos, and of the videos that failed as a whole or in part.
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._assembling: PendingTasks[int] = PendingTasks()

    def make(self, videos: list[Video], refused: list[tuple[str, Fate]]) -> CurationResult:
        """Write the shards of all videos. Return the result, which also reports the refused videos.

        Args:
            videos: videos to examine.
            refused: key and fate of each listed video that cannot be examined.
        """
        self._examine(videos, refused)
        people = self._decide()
        try:
            self._assemble({clip.clip: clip for clip in people})
        finally:
            # Wait for the `assemble` tasks also after an error, so that no shard is left half written.
            self._finish_assembled(max_pending=0)
        return self._close(people)

    def _examine(self, videos: list[Video], refused: list[tuple[str, Fate]]) -> None:
        # Keys of the videos that earlier runs finished.
        reported = self._reported_groups()
        earlier = {key for n in reported for key in self._plan.groups[n]}
        self._finished = set(earlier)
        listed = {video.key for video in videos} | {key for key, _ in refused}
        # The plan also names videos that an earlier run saw and that do not exist any more. They are ended as failed
        # below, because their groups would never be complete.
        gone = [key for group in self._plan.groups for key in group if key not in listed | earlier]
        self._tally = CurationTally(videos=len(listed) + len(gone), earlier=len(earlier & listed))
        videos, repeated = identical_files(videos, self._plan.order)
        self._same_speakers = [(video.speaker, first.speaker) for video, first in repeated]
        for key, fate in [*refused, *(identical_fate(*pair) for pair in repeated)]:
            if key not in earlier:
                self._end(self._progress(key).refuse(fate))
        for key in gone:
            missing = Fate(
                video=key, status="failed", reason="missing", detail="the file does not exist any more"
            )
            self._end(self._progress(key).refuse(missing))
        attempts = self._config.attempts
        lost = run_passes(
            [video for video in videos if video.key not in earlier],
            attempts=attempts,
            run_pass=lambda left, _: self._run_pass(left),
            is_finished=lambda video: video.key in self._finished,
            say=self._say,
        )
        for video in lost:
            detail = f"{attempts} attempts failed: the workers died"
            self._end(
                self._progress(video.key).refuse(fate_of(video, None, "failed", reason="lost", detail=detail))
            )

    def _run_pass(self, videos: list[Video]) -> None:
        # Without closing, the pipeline would continue after an error.
        with closing(self._pipeline().run(videos)) as messages:
            for ended in messages:
                self._end(ended)

    def _pipeline(self) -> Pipeline:
        config, pools, bounds = self._config, self._config.pools, self._config.bounds
        arguments: dict[str, dict[str, Any]] = {
            "probe": {
                "max_s": bounds.max_s,
                "max_input_bytes": config.max_input_bytes,
                "max_pixels": bounds.max_pixels,
            },
            "scan": {"max_s": bounds.max_s},
            "track": {},
            "cut": {"gates": config.gates, "size_px": config.size_px},
            "sync": {
                "syncnet": config.syncnet,
                "min_confidence": self._facts["syncnet"]["min_confidence"],
                "device": config.device,
            },
            "recognise": {"identity": installed_identity(config.identity)},
            "write": {"folder": config.output},
        }
        common = {
            "output": config.output,
            "timeout_factor": bounds.timeout_factor,
            "memory_gib": bounds.memory_gib,
        }
        on_gpu = config.device == "gpu" and config.syncnet != NO_SYNCNET
        steps = []
        for stage in self.stages:
            pool = getattr(pools, stage.name)
            needs_gpu = on_gpu and stage.name == "sync"
            step = Step(
                stage=stage,
                pool=pool,
                arguments={**common, **arguments[stage.name]},
                gpus=(pool.gpus or 1) if needs_gpu else 0,
                # The message that the actor works on and the next one.
                max_in_flight=2,
            )
            steps.append(step)
        return Pipeline(steps=steps, start_timeout_s=config.start_timeout_s)

    def _end(self, ended: Ended) -> None:
        """Record a finished piece or video. The last piece finishes a video."""
        if ended.key in self._finished:
            return
        # `of` is the number of the video's pieces, or 0 if the message reports the video as a whole.
        is_whole_video = ended.of == 0
        pieces = self._pieces.setdefault(ended.key, set())
        # A refused video ends as a whole, even if its first piece, which has the same number 0, has ended before.
        if ended.number in pieces and not is_whole_video:
            return
        pieces.add(ended.number)
        self._tally.add(ended)
        for fate in ended.fates:
            if fate.status == "failed":
                self._failed.add(ended.key)
                self._say(f"{fate.video}: {fate.reason}: {fate.detail}")
            if fate.status == "kept":
                self._clips.setdefault(ended.key, []).append(known_clip(fate, ended.prints[fate.clip]))
        if is_whole_video:
            # Clips of pieces that ended before are lost with the video.
            self._clips.pop(ended.key, None)
        if is_whole_video or len(pieces) == ended.of:
            self._finish_video(ended.key)

    def _finish_video(self, key: str) -> None:
        del self._pieces[key]
        self._finished.add(key)
        self._tally.finish_video()
        if self._tally.finished % _SAY_EVERY == 0:
            self._say(self._tally.progress())
        self._check_failed()

    def _decide(self) -> list[KnownClip]:
        """Decide on the clips on which no earlier run decided, save all decisions and return them.

        The decisions are saved before any shard is written, because a shard must not depend on a run that was
        interrupted.
        """
        known = read_people(self._place)
        decided = {clip.clip for clip in known}
        # Pieces of a video may have ended in any order.
        found = [
            clip
            for key in self._plan.order
            for clip in sorted(self._clips.get(key, []), key=lambda clip: clip.clip)
        ]
        new = [clip for clip in found if clip.clip not in decided]
        if new:
            self._say(f"comparing {len(new)} clips with each other and with {len(known)} of earlier runs")
        people = [*known, *decide(known, new, self._rules, self._same_speakers)]
        if new:
            write_people(self._place, people)
        self._tally.drop_copies(clip.clip for clip in people if clip.copy_of)
        return people

    def _assemble(self, people: dict[str, KnownClip]) -> None:
        """Write the shards of all groups that have none yet.

        Args:
            people: the decisions on all clips, by the clips' keys.
        """
        reported = {*self._reported_groups()}
        task = ray.remote(num_cpus=0, max_retries=3)(assemble)
        for group, keys in enumerate(self._plan.groups):
            if group in reported:
                continue
            names = [clip.clip for key in keys for clip in self._clips.get(key, [])]
            clips = {name: people[name].without_prints() for name in names}
            size = self._config.bytes_per_shard
            self._assembling.add(task.remote(self._config.output, group, keys, size, clips), group)
            self._finish_assembled(max_pending=_MAX_ASSEMBLING)

    def _check_failed(self) -> None:
        """Raise TooManyFailed if more than the allowed fraction of the videos failed."""
        failed, videos = len(self._failed), self._tally.videos
        if failed > self._config.max_failed * videos:
            raise TooManyFailed(
                f"{failed} of {videos} videos failed (missing, unreadable or too slow), the bound (max_failed) is "
                f"{self._config.max_failed:g}; "
                f"finished work is kept"
            )

    def _finish_assembled(self, *, max_pending: int) -> None:
        """Wait until at most `max_pending` groups are being assembled. Raise the error of a group that failed."""
        for group, task in self._assembling.ended(max_pending=max_pending):
            try:
                ray.get(task)
            except RayTaskError as error:
                raise error.cause or error from error  # pyright: ignore
            except RayError as error:
                raise OSError(f"the shards of group {group} cannot be written: {error}") from error

    def _progress(self, key: str) -> VideoProgress:
        return VideoProgress(self._config.output, key)

    def _reported_groups(self) -> list[int]:
        """Return the numbers of the groups whose shards are written."""
        try:
            place = Location(REPORTS, self._place.filesystem, f"{self._place.path}/{REPORTS}")
            return sorted(
                int(name.removesuffix(".parquet")) for name in place.sizes() if name.endswith(".parquet")
            )
        except FileNotFoundError:
            return []

    def _close(self, people: list[KnownClip]) -> CurationResult:
        """Write the report of all groups as a table and a web page, the bill and the index. Return the result."""
        fates = [*self._all_fates()]
        lines = people_lines(people, self._rules, self._facts["identity"]["weights"])
        write_fates(self._place, REPORT, fates)
        bill = self._tally.bill()
        texts = {PAGE: page(fates, "Curated clips", lines), BILL: json.dumps(bill.as_json(), indent=2) + "\n"}
        for name, text in texts.items():
            with self._place.atomic_write(name) as file:
                file.write(text.encode())
        # All groups are written, so no saved progress is needed any more.
        path = f"{self._place.path}/{PROGRESS_FOLDER}"
        if self._place.filesystem.get_file_info(path).type.name != "NotFound":
            self._place.filesystem.delete_dir(path)
        if any(fate.status == "kept" for fate in fates):
            load_index(self._config.output)
        self._say(self._tally.progress())
        return CurationResult(bill=bill, fates=fates, people=lines)

    def _all_fates(self) -> Iterator[Fate]:
        """Yield the fates in the reports of all groups, including those of earlier runs."""
        for group in self._reported_groups():
            yield from read_fates(self._place, f"{REPORTS}/{group:06d}.parquet")
