"""A dubbing run: rows through the stages, their parts to videos, and an account of each.

    look -> decode -> motion -> render -> encode -> write

All but the last are Ray Data's: pools of actors that it grows and shrinks with the work, and that hand on no more than
the object store bears. The last needs all parts of a video, which come from anywhere: this driver asks an actor for it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from xactor_platform.bulk.pool import Pool, pack, piecewise, results, tried_twice
from xactor_platform.cluster.capacity import check_pools_fit
from xactor_platform.dubbing.bill import Bill, Tally
from xactor_platform.dubbing.config import DubConfig
from xactor_platform.dubbing.decode import Decode
from xactor_platform.dubbing.encode import Encode
from xactor_platform.dubbing.look import Look
from xactor_platform.dubbing.manifest import read_manifest
from xactor_platform.dubbing.model import ModelFacts, look_at_model
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.dubbing.stage import Stage, failure
from xactor_platform.dubbing.work import Done, Dub, Failed, Part, Row
from xactor_platform.dubbing.write import Writer
from xactor_platform.storage.location import Location, check_output

RESULTS, BILL, PARTS_FOLDER = "results.jsonl", "bill.json", ".parts"
_WRITING = 4  # videos that are put together at a time
_SAVE_EVERY = 64  # rows: an object store's file is written anew each time


class StorageFailed(OSError):
    """The place of the videos takes no more: nothing is lost, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all rows: a line of results.jsonl each."""

    bill: Bill
    rows: list[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] != "ok"]


def dub(config: DubConfig, *, connect: Callable[[], None], say: Callable[[str], None]) -> Outcome:
    """Makes every video of the manifest that is not there.

    Args:
        connect: joins the cluster; called once all else was found right.
        say: is told of progress, a line at a time.

    Raises:
        ValueError: what cannot work, before any work starts.
        StorageFailed: the output takes no more.
    """
    rows, refused = read_manifest(config.manifest, config.options)
    facts = look_at_model(config.model)
    check_output(config.output)
    connect()
    check_pools_fit(config.pools.least_cpus)
    return Run(config, facts, say).make(rows, refused)


class Run:
    """One run over a manifest."""

    def __init__(self, config: DubConfig, facts: ModelFacts, say: Callable[[str], None]):
        self._config, self._facts, self._say = config, facts, say
        self._place = Location.parse(config.output)
        self._results: dict[int, dict[str, Any]] = {}  # by the row's number
        self._unsaved = 0
        self._writing: dict[ray.ObjectRef, Dub] = {}
        self._parts: dict[int, set[int]] = {}  # that are there, of videos that are not whole

    def make(self, rows: list[Row], refused: list[Failed]) -> Outcome:
        # An actor, as each task might wait for a new process, whose start takes more than its work.
        self._writer: Any = (
            ray.remote(Writer)
            .options(num_cpus=0, max_concurrency=_WRITING, max_restarts=-1, max_task_retries=3)
            .remote(self._config.output)
        )
        self._tally = Tally(rows=len(rows) + len(refused), left_s=0.0)
        for row in refused:
            self._finish(row, 0.0)
        dubs = self._look(rows)
        self._tally.left_s = sum(dub.seconds for dub in dubs)
        self._tally.begin_making()
        left = dubs = sorted(dubs, key=lambda dub: (-dub.seconds, dub.row.number))
        for attempt in range(1, self._config.attempts + 1):
            if not left:
                break
            last = attempt == self._config.attempts
            self._make(left, alone=last and attempt > 1)
            left = [dub for dub in left if dub.row.number not in self._results]
            if left and not last:
                self._say(f"{len(left)} rows were lost with their workers, and are tried again")
        for dub in left:
            tries = self._config.attempts
            message = (
                f"tried {tries} times, and its workers died each time" if tries > 1 else "its workers died"
            )
            self._finish(
                Failed(number=dub.row.number, id=dub.row.id, code="lost", message=message), dub.seconds
            )
        if not any(row["status"] != "ok" for row in self._results.values()):
            self._forget_parts()
        self._save()
        self._say(self._tally.line())
        bill = self._tally.bill()
        with self._place.atomic_write(BILL) as file:
            file.write((json.dumps(asdict(bill), indent=2) + "\n").encode())
        return Outcome(bill=bill, rows=[row for _, row in sorted(self._results.items())])

    def _look(self, rows: list[Row]) -> list[Dub]:
        """Those that are still to be made."""
        config = self._config
        look = {
            "output": config.output,
            "model": self._facts.fingerprint,
            "most_bytes": config.max_input_bytes,
        }
        dubs: list[Dub] = []
        left = rows
        for _ in range(config.attempts):
            if not left:
                break
            with piecewise(config.start_timeout_s):
                tables = ray.data.from_arrow([pack(row) for row in left])
                looked = self._stage(tables, Look, config.pools.decode, **look)
            seen = set()
            for result in results(looked):
                seen.add(result.number if isinstance(result, Failed) else result.row.number)
                self._tally.spend(result.spent)
                if isinstance(result, Dub):
                    dubs.append(replace(result, spent={}))
                else:
                    self._finish(result, 0.0)
            left = [row for row in left if row.number not in seen]
        for row in left:
            lost = "its worker died when its files were read"
            self._finish(Failed(number=row.number, id=row.id, code="lost", message=lost), 0.0)
        return dubs

    def _make(self, dubs: list[Dub], *, alone: bool) -> None:
        """alone: no worker has two rows at a time, as one that kills it would take the other with it."""
        self._parts.clear()
        by_number = {dub.row.number: dub for dub in dubs}
        for result in results(self._pipeline(dubs, alone)):
            self._tally.spend(result.spent)
            if isinstance(result, Failed):
                self._finish(result, by_number[result.number].seconds)
            else:
                self._arrived(result)
            self._written(most=_WRITING)
        self._written(most=0)

    def _pipeline(self, dubs: list[Dub], alone: bool) -> ray.data.Dataset:
        config, pools = self._config, self._config.pools
        streams = 1 if alone else config.streams
        device = "cuda" if config.device == "gpu" else "cpu"
        motion = {
            "model": config.model,
            "output": config.output,
            "device": device,
            "streams": streams,
            "segment_windows": config.segment_windows,
        }
        render = {"model": config.model, "device": device, "windows": config.windows}
        decode = {"size": self._facts.image_size, "decode_s": config.decode_s}
        in_flight = 1 if alone else None
        with piecewise(config.start_timeout_s):
            tables = self._source(dubs)
            tables = self._stage(tables, Decode, pools.decode, in_flight, **decode)
            tables = self._stage(tables, Perform, pools.motion, in_flight, streams, **motion)
            tables = self._stage(tables, Render, pools.render, in_flight, **render)
            return self._stage(tables, Encode, pools.encode, in_flight, output=config.output)

    def _stage(
        self,
        tables: ray.data.Dataset,
        kind: type[Stage],
        pool: Pool,
        in_flight: int | None = None,
        batch: int = 1,
        **arguments: Any,
    ) -> ray.data.Dataset:
        """in_flight: the most tables that an actor is given ahead. batch: pieces of work in each."""
        config = self._config
        group: dict[str, Any] = {}
        if config.pools.groups:
            group["label_selector"] = {"ray.io/node-group": kind.group}
        return tables.map_batches(
            kind,
            fn_constructor_kwargs=arguments,
            batch_size=batch,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min, max_size=pool.max, max_tasks_in_flight_per_actor=in_flight
            ),
            num_cpus=pool.cpus,
            num_gpus=(config.gpus(pool) if kind in (Perform, Render) else 0) or None,
            ray_remote_args_fn=tried_twice,
            **group,
        )

    def _source(self, dubs: list[Dub]) -> ray.data.Dataset:
        return ray.data.from_arrow([pack(dub) for dub in dubs])

    def _arrived(self, part: Part) -> None:
        """With its last part, a video is put together."""
        number = part.dub.row.number
        parts = self._parts.setdefault(number, set())
        if number in self._results or part.number in parts:
            return
        parts.add(part.number)
        if len(parts) == part.of:
            del self._parts[number]
            self._writing[self._writer.write.remote(part.dub, part.of)] = part.dub

    def _written(self, *, most: int) -> None:
        """Takes note of the videos that are there, until no more than so many are being put together."""
        while self._writing:
            wait = len(self._writing) > most
            done, _ = ray.wait([*self._writing], timeout=None if wait else 0)
            if not done:
                return
            for task in done:
                dub = self._writing.pop(task)
                try:
                    result = ray.get(task)
                except RayTaskError as error:
                    result = failure(dub.row, error.cause or error, {})  # pyright: ignore
                except RayError:
                    continue  # its worker died, three times: it is tried again with what else was lost
                self._tally.spend(result.spent)
                self._finish(result, dub.seconds)

    def _finish(self, result: Done | Failed, expected_s: float) -> None:
        """A row's line of the results. Each has one, whatever comes twice."""
        failed = isinstance(result, Failed)
        number = result.number if failed else result.row.number
        if number in self._results:
            return
        if failed and result.code == "storage":
            self._save()
            raise StorageFailed(f"{self._config.output}: {result.message}")
        self._results[number] = {
            "id": result.id if failed else result.row.id,
            "row": number,
            "status": "failed" if failed else "ok",
            "frames": 0 if failed else result.frames,
            "seconds": 0.0 if failed else round(result.seconds, 3),
            "error": {"code": result.code, "message": result.message} if failed else None,
        }
        self._tally.finish(result, expected_s)
        if failed:
            self._say(f"row {number}: {result.id}: {result.code}: {result.message}")
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self._save()
            self._say(self._tally.line())

    def _save(self) -> None:
        """Of the videos that are there, each says itself what it was made from: this list is an account, no more."""
        self._unsaved = 0
        lines = "".join(json.dumps(row) + "\n" for _, row in sorted(self._results.items()))
        with self._place.atomic_write(RESULTS) as file:
            file.write(lines.encode())

    def _forget_parts(self) -> None:
        """Those of rows that have changed since, too."""
        path = f"{self._place.path}/{PARTS_FOLDER}"
        if self._place.filesystem.get_file_info(path).type.name != "NotFound":
            self._place.filesystem.delete_dir(path)
