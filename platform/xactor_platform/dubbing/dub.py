"""Run bulk dubbing: pass the rows of a manifest through the stages, join segments to videos, and report on each row.

    look | decode -> motion -> render -> encode | write

A segment is a part of a video that one actor renders. Ray Data runs two pipelines: first `look` over all rows, then
`decode` to `encode` over the rows whose videos must be made. The segments of one video come from different actors. The
driver, the process that runs this module, therefore collects them and lets a writer actor join them.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from xactor.options import recommended
from xactor_platform.bulk.pipeline import PendingTasks, Pipeline, Step, run_passes
from xactor_platform.cluster.capacity import check_pools_fit
from xactor_platform.dubbing.decode import Decode
from xactor_platform.dubbing.dub_config import DubConfig
from xactor_platform.dubbing.dub_results import RESULTS, DubResult, DubResults, dub_tally
from xactor_platform.dubbing.dub_stage import failure
from xactor_platform.dubbing.encode import Encode
from xactor_platform.dubbing.look import Look
from xactor_platform.dubbing.manifest import read_manifest, without_replacing
from xactor_platform.dubbing.messages import Dub, Failed, Row, SegmentFile
from xactor_platform.dubbing.model_facts import ModelFacts, read_model_facts
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.dubbing.write import Writer
from xactor_platform.storage.location import Location, check_output

# In the output: the file with the run's times and counts, and the folder of the finished segments.
BILL, SEGMENTS_FOLDER = "bill.json", ".parts"
# Maximum number of videos that are written concurrently.
_MAX_WRITING = 4


def dub(config: DubConfig, *, connect: Callable[[], None], say: Callable[[str], None]) -> DubResult:
    """Make every video of the manifest that does not exist yet. Return the results of all rows.

    Args:
        config: configuration of the run.
        connect: joins the cluster. It is called after the manifest, the model and the output were found valid.
        say: is called with lines of progress.

    Raises:
        ValueError: the manifest, the model, the output or a pool is invalid. No work has started.
        StorageFailed: the output cannot be written.
    """
    rows, refused = read_manifest(config.manifest, config.options, recommended(config.model))
    rows, replacing = without_replacing(config.manifest, config.output, rows, (RESULTS, BILL))
    refused += replacing
    facts = read_model_facts(config.model)
    check_output(config.output)
    connect()
    check_pools_fit(config.pools.min_cpus)
    return DubRun(config, facts, say).make(rows, refused)


class DubRun:
    """Dub the rows of one manifest.

    Args:
        config: configuration of the run.
        facts: facts about the run's model.
        say: is called with lines of progress.
    """

    def __init__(self, config: DubConfig, facts: ModelFacts, say: Callable[[str], None]):
        self._config, self._facts, self._say = config, facts, say
        self._place = Location.parse(config.output)
        self._writing: PendingTasks[Dub] = PendingTasks()
        # Numbers of the finished segments of each incomplete video, by the number of its row.
        self._segments: dict[int, set[int]] = {}

    def make(self, rows: list[Row], refused: list[Failed]) -> DubResult:
        """Make the videos of all rows. Return the results of all rows, valid and invalid.

        Args:
            rows: valid rows of the manifest.
            refused: failures of its invalid rows.
        """
        # The writer is an actor. Tasks would be slower: each task might wait for a new process, whose start takes
        # longer than the work.
        self._writer: Any = (
            ray.remote(Writer)
            .options(num_cpus=0, max_concurrency=_MAX_WRITING, max_restarts=-1, max_task_retries=3)
            .remote(self._config.output)
        )
        self._results = DubResults(self._config.output, dub_tally(len(rows) + len(refused)), self._say)
        for failed in refused:
            self._results.finish(failed, 0.0)
        # The longest videos first, so that no long video is left for the end.
        dubs = sorted(self._look(rows), key=lambda dub: (-dub.seconds, dub.row.number))
        self._results.tally.start_pace(sum(dub.seconds for dub in dubs))
        attempts = self._config.attempts

        def run_pass(left: list[Dub], attempt: int) -> None:
            is_last_retry = attempt == attempts and attempts > 1
            self._run_pass(left, alone=is_last_retry)

        lost = run_passes(
            dubs,
            attempts=attempts,
            run_pass=run_pass,
            is_finished=lambda dub: dub.row.number in self._results,
            say=self._say,
        )
        prefix = f"{attempts} attempts failed: " if attempts > 1 else ""
        for dub in lost:
            self._results.finish(_lost(dub.row, f"{prefix}the workers died"), dub.seconds)
        return self._close()

    def _look(self, rows: list[Row]) -> list[Dub]:
        """Pass all rows through the stage `look`. Return the videos that must be made, and finish the other rows."""
        config = self._config
        arguments = {
            "output": config.output,
            "model": self._facts.fingerprint,
            "max_input_bytes": config.max_input_bytes,
            "decode_s": config.decode_s,
        }
        pipeline = self._pipeline([Step(stage=Look, pool=config.pools.decode, arguments=arguments)])
        dubs: list[Dub] = []
        seen: set[int] = set()

        def run_pass(left: list[Row], _: int) -> None:
            for message in pipeline.run(left):
                seen.add(message.number if isinstance(message, Failed) else message.row.number)
                self._results.tally.add_seconds(message.stage_s)
                if isinstance(message, Dub):
                    dubs.append(replace(message, stage_s={}))
                else:
                    self._results.finish(message, 0.0)

        lost = run_passes(
            rows, attempts=config.attempts, run_pass=run_pass, is_finished=lambda row: row.number in seen
        )
        for row in lost:
            self._results.finish(_lost(row, "the worker that read its files died"), 0.0)
        return dubs

    def _run_pass(self, dubs: list[Dub], *, alone: bool) -> None:
        """Pass videos through the stages `decode` to `encode`, and write those whose segments are complete."""
        # Each pass reports all segments of its videos again, including those that earlier passes made.
        self._segments.clear()
        by_number = {dub.row.number: dub for dub in dubs}
        for message in self._pipeline(self._steps(alone)).run(dubs):
            self._results.tally.add_seconds(message.stage_s)
            if isinstance(message, Failed):
                self._results.finish(message, by_number[message.number].seconds)
            else:
                self._add_segment(message)
            self._finish_written(max_pending=_MAX_WRITING)
        self._finish_written(max_pending=0)

    def _steps(self, alone: bool) -> list[Step]:
        """Return the steps of a pass.

        Args:
            alone: whether each actor has one row at a time. If a row kills its actor, no other row is then lost.
        """
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
        decode = {
            "output": config.output,
            "size": self._facts.image_size,
            "decode_s": config.decode_s,
        }
        motion_gpus, render_gpus = config.gpus(pools.motion), config.gpus(pools.render)
        steps = [
            Step(stage=Decode, pool=pools.decode, arguments=decode),
            Step(stage=Perform, pool=pools.motion, arguments=motion, gpus=motion_gpus, batch=streams),
            Step(stage=Render, pool=pools.render, arguments=render, gpus=render_gpus),
            Step(stage=Encode, pool=pools.encode, arguments={"output": config.output}),
        ]
        return [replace(step, max_in_flight=1) for step in steps] if alone else steps

    def _pipeline(self, steps: list[Step]) -> Pipeline:
        config = self._config
        return Pipeline(steps=steps, start_timeout_s=config.start_timeout_s, node_groups=config.pools.groups)

    def _add_segment(self, segment: SegmentFile) -> None:
        """Record a finished segment. If it is the last one of its video, start to write the video."""
        number = segment.dub.row.number
        finished = self._segments.setdefault(number, set())
        if number in self._results or segment.number in finished:
            return
        finished.add(segment.number)
        if len(finished) == segment.of:
            del self._segments[number]
            self._writing.add(self._writer.write.remote(segment.dub, segment.of), segment.dub)

    def _finish_written(self, *, max_pending: int) -> None:
        """Record the videos that were written. Wait while more than `max_pending` are being written."""
        for dub, task in self._writing.ended(max_pending=max_pending):
            try:
                result = ray.get(task)
            except RayTaskError as error:
                result = failure(dub.row, error.cause or error)  # pyright: ignore
            except RayError:
                # The writer died while it wrote this video, and again in all three retries. The next pass makes the
                # video again.
                continue
            self._results.tally.add_seconds(result.stage_s)
            self._results.finish(result, dub.seconds)

    def _close(self) -> DubResult:
        """Write the results and the bill. Delete the segments unless a later run can use them."""
        rows = self._results.rows()
        if all(row["status"] == "ok" for row in rows):
            path = f"{self._place.path}/{SEGMENTS_FOLDER}"
            if self._place.filesystem.get_file_info(path).type.name != "NotFound":
                self._place.filesystem.delete_dir(path)
        self._results.save()
        self._say(self._results.progress())
        bill = self._results.bill()
        with self._place.atomic_write(BILL) as file:
            file.write((json.dumps(bill.as_json(), indent=2) + "\n").encode())
        return DubResult(bill=bill, rows=rows)


def _lost(row: Row, message: str) -> Failed:
    return Failed(number=row.number, id=row.id, code="lost", message=message)
