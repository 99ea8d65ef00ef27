"""A curation run: videos through the stages to clips, clips to shards, and an account of each.

    probe -> scan -> track -> cut -> sync -> write | assemble

All but the last are Ray Data's: pools of actors that it grows and shrinks with the work, and that hand on no more than
the object store bears. The last needs all clips of a group of videos: tasks that this driver starts.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from xactor_platform.bulk.pool import Pool, pack, piecewise, results, tried_twice
from xactor_platform.cluster.capacity import check_pools_fit
from xactor_platform.curation.account import PAGE, REPORT, page, read_fates, write_fates
from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.assemble import REPORTS, assemble
from xactor_platform.curation.bill import Bill, Tally
from xactor_platform.curation.config import CurateConfig
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.lips import NO_SYNCNET, Sync, syncnet_facts
from xactor_platform.curation.parts import PARTS, Parts
from xactor_platform.curation.probe import Probe
from xactor_platform.curation.scan import Scan
from xactor_platform.curation.stage import Stage
from xactor_platform.curation.track import Track
from xactor_platform.curation.work import Ended, Fate, Video, fate_of
from xactor_platform.curation.write import Write
from xactor_platform.data.index import load_index
from xactor_platform.storage.location import Location, check_output

PLAN, BILL = "curate.json", "bill.json"
_ASSEMBLING = 8  # groups that become shards at a time
_SAY_EVERY = 20  # videos


class BudgetSpent(RuntimeError):
    """More videos cannot be read than may be: what is finished is kept, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all clips; `failed` are the videos that could not be read."""

    bill: Bill
    fates: list[Fate]

    @property
    def failed(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.status == "failed"]


def curate(config: CurateConfig, *, connect: Callable[[], None], say: Callable[[str], None]) -> Outcome:
    """Makes the shards of all videos that are not in some.

    Args:
        connect: joins the cluster; called once all else was found right.
        say: is told of progress, a line at a time.

    Raises:
        ValueError: what cannot work, before any work starts.
        BudgetSpent: too many videos cannot be read.
    """
    videos, refused = find_videos(config.videos, config.dataset, config.metadata)
    syncnet = syncnet_facts(config.syncnet, config.gates.least_confidence)
    check_output(config.output)
    plan = Plan.of(config, syncnet, [*(video.key for video in videos), *(key for key, _ in refused)])
    connect()
    check_pools_fit(config.pools.least_cpus)
    return Run(config, plan, syncnet["least_confidence"], say).make(videos, refused)


@dataclass(frozen=True)
class Plan:
    """Which videos are whose group's, written down once: what comes later has groups of its own.

    So the same videos make the same shards, and more of them change none that are there.
    """

    groups: list[list[str]]

    @classmethod
    def of(cls, config: CurateConfig, syncnet: dict[str, Any], keys: list[str]) -> "Plan":
        """The output's own, with what is new; written down. ValueError: it was made with other settings."""
        place = Location.parse(config.output)
        place.filesystem.create_dir(place.path, recursive=True)
        settings = json.loads(json.dumps(config.decisive(syncnet)))
        groups: list[list[str]] = []
        if PLAN in place.sizes():
            with place.open(PLAN) as file:
                before = json.loads(file.read())
            if changed := sorted(k for k in settings if settings[k] != before["settings"].get(k)):
                was, now = (str(found.get(changed[0])) for found in (before["settings"], settings))
                raise ValueError(
                    f"{config.output}: was made with another {changed[0]}: {was}, now {now}; choose another output"
                )
            groups = before["groups"]
        known = {key for group in groups for key in group}
        new = sorted(set(keys) - known)
        size = config.videos_per_shard
        groups += [new[n : n + size] for n in range(0, len(new), size)]
        with place.atomic_write(PLAN) as file:
            file.write((json.dumps({"settings": settings, "groups": groups}) + "\n").encode())
        return cls(groups)


class Run:
    """One run over videos."""

    stages: ClassVar[dict[str, type[Stage]]] = {
        kind.name: kind for kind in (Probe, Scan, Track, Cut, Sync, Write)
    }

    def __init__(self, config: CurateConfig, plan: Plan, least_confidence: float, say: Callable[[str], None]):
        self._config, self._say, self._groups = config, say, plan.groups
        self._least_confidence = least_confidence
        self._place = Location.parse(config.output)
        self._group_of = {key: n for n, group in enumerate(plan.groups) for key in group}
        self._pieces: dict[str, set[int]] = {}  # that are finished, of videos that are not
        self._finished: set[str] = set()  # videos
        self._failed: set[str] = set()
        self._assembling: dict[ray.ObjectRef, int] = {}

    def make(self, videos: list[Video], refused: list[tuple[str, Fate]]) -> Outcome:
        try:
            self._make(videos, refused)
        finally:  # whatever ends it: shards that are being written are not left half done
            self._assembled(most=0)
        return self._account()

    def _make(self, videos: list[Video], refused: list[tuple[str, Fate]]) -> None:
        there = self._reports()
        done = {key for n in there for key in self._groups[n]}
        self._finished = set(done)
        # Videos that an earlier run saw and that are gone since must not be waited for.
        listed = {video.key for video in videos} | {key for key, _ in refused}
        self._left = [set(group) - done & set(group) for group in self._groups]
        gone = [key for group in self._left for key in group if key not in listed]
        self._tally = Tally(videos=len(listed) + len(gone), there=len(done & listed))
        for key, fate in refused:
            if key not in done:
                self._ended(Parts(self._config.output, key).refuse(fate))
        for key in gone:
            missing = Fate(video=key, status="failed", reason="missing", detail="it is not there any more")
            self._ended(Parts(self._config.output, key).refuse(missing))
        left = [video for video in videos if video.key not in done]
        for attempt in range(1, self._config.attempts + 1):
            if not left:
                break
            with closing(results(self._pipeline(left))) as those:  # or it would go on after an error
                for ended in those:
                    self._ended(ended)
            left = [video for video in left if video.key not in self._finished]
            if left and attempt < self._config.attempts:
                self._say(f"{len(left)} videos lost work with its workers, which is tried again")
        for video in left:
            tries = f"tried {self._config.attempts} times, and its workers died each time"
            lost = fate_of(video, None, "failed", reason="lost", detail=tries)
            self._ended(Parts(self._config.output, video.key).refuse(lost))

    def _pipeline(self, videos: list[Video]) -> ray.data.Dataset:
        config, pools, bounds = self._config, self._config.pools, self._config.bounds

        def stage(tables: ray.data.Dataset, name: str, gpus: float = 0, **arguments):
            pool: Pool = getattr(pools, name)
            every = {"output": config.output, "patience": bounds.patience, "memory_gib": bounds.memory_gib}
            return tables.map_batches(
                self.stages[name],  # pyright: ignore
                fn_constructor_kwargs={**every, **arguments},
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(pool.min, len(videos)), max_size=pool.max, max_tasks_in_flight_per_actor=2
                ),
                num_cpus=pool.cpus,
                num_gpus=gpus or None,
                ray_remote_args_fn=tried_twice,
            )

        most = {"most_s": bounds.most_s}
        judge = {
            "syncnet": config.syncnet,
            "least_confidence": self._least_confidence,
            "device": config.device,
        }
        gpus = (pools.sync.gpus or 1) if config.device == "gpu" and config.syncnet != NO_SYNCNET else 0
        with piecewise(config.start_timeout_s):
            tables = self._source(videos)
            size = {"most_bytes": bounds.most_bytes, "most_pixels": bounds.most_pixels}
            tables = stage(tables, "probe", **most, **size)
            tables = stage(tables, "scan", **most)
            tables = stage(tables, "track")
            tables = stage(tables, "cut", gates=config.gates, size_px=config.size_px)
            tables = stage(tables, "sync", gpus, **judge)
            held_out = {"held_out": config.held_out, "seed": config.seed}
            return stage(tables, "write", folder=config.output, **held_out)

    def _source(self, videos: list[Video]) -> ray.data.Dataset:
        return ray.data.from_arrow([pack(video) for video in videos])

    def _ended(self, ended: Ended) -> None:
        """Takes note of a piece; with its last one a video is finished, and with its last video a group."""
        if ended.key in self._finished:
            return
        pieces = self._pieces.setdefault(ended.key, set())
        if ended.number in pieces:
            return
        pieces.add(ended.number)
        if not ended.again:
            self._tally.add(ended)
        if any(fate.status == "failed" for fate in ended.fates):
            self._failed.add(ended.key)
            for fate in ended.fates:
                if fate.status == "failed":
                    self._say(f"{fate.video}: {fate.reason}: {fate.detail}")
        if ended.of and len(pieces) < ended.of:
            return
        del self._pieces[ended.key]
        self._finished.add(ended.key)
        self._tally.video_done()
        if (self._tally.videos - self._tally.left) % _SAY_EVERY == 0:
            self._say(self._tally.line())
        self._check_budget()
        group = self._group_of[ended.key]
        self._left[group].discard(ended.key)
        if not self._left[group]:
            task = ray.remote(num_cpus=0, max_retries=3)(assemble)
            keys, size = self._groups[group], self._config.bytes_per_shard
            self._assembling[task.remote(self._config.output, group, keys, size)] = group
        self._assembled(most=_ASSEMBLING)

    def _check_budget(self) -> None:
        failed, videos = len(self._failed), self._tally.videos
        if failed > self._config.max_failed * videos:
            raise BudgetSpent(
                f"{failed} of {videos} videos cannot be read, the bound (max_failed) is {self._config.max_failed:g}; "
                f"what is finished is kept"
            )

    def _assembled(self, *, most: int) -> None:
        """Waits until no more than so many groups are being put together."""
        while len(self._assembling) > most:
            (done,), _ = ray.wait([*self._assembling])
            group = self._assembling.pop(done)
            try:
                ray.get(done)
            except RayTaskError as error:
                raise error.cause or error from error  # pyright: ignore
            except RayError as error:
                raise OSError(f"the shards of group {group} cannot be written: {error}") from error

    def _reports(self) -> list[int]:
        """The groups that are done."""
        try:
            place = Location(REPORTS, self._place.filesystem, f"{self._place.path}/{REPORTS}")
            return sorted(int(name[:-8]) for name in place.sizes() if name.endswith(".parquet"))
        except FileNotFoundError:
            return []

    def _account(self) -> Outcome:
        """The reports of all groups as one, the page, the bill and the index."""
        fates = [*self._all_fates()]
        write_fates(self._place, REPORT, fates)
        bill = self._tally.bill()
        texts = {PAGE: page(fates, "Curated clips"), BILL: json.dumps(bill.as_json(), indent=2) + "\n"}
        for name, text in texts.items():
            with self._place.atomic_write(name) as file:
                file.write(text.encode())
        path = f"{self._place.path}/{PARTS}"
        if self._place.filesystem.get_file_info(path).type.name != "NotFound":
            self._place.filesystem.delete_dir(path)
        if any(fate.status == "kept" for fate in fates):
            load_index(self._config.output)
        self._say(self._tally.line())
        return Outcome(bill=bill, fates=fates)

    def _all_fates(self) -> Iterator[Fate]:
        for group in self._reports():
            yield from read_fates(self._place, f"{REPORTS}/{group:06d}.parquet")
