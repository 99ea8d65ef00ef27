"""The training loop: what one rank does from its planned stream to the optimizer step."""

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from xactor_platform.batch import Batch
from xactor_platform.index import BadSample, load_index
from xactor_platform.plan import Cursor, Step, walk
from xactor_platform.stream import PlannedStream
from xactor_platform.training.config import StageConfig
from xactor_platform.training.engine import make_engine, set_learning_rates, use_bf16
from xactor_platform.training.recorder import Clock, Recorder, StepResult, TrainingStopped
from xactor_platform.training.run_folder import EXPORT, RunFolder
from xactor_platform.training.stage import Facts, Stage, stage_of

STATE_TAG = "state"


@dataclass(frozen=True)
class Job:
    """What the driver hands each rank."""

    config: StageConfig
    facts: Facts


def train_rank(job: dict[str, Job]) -> str | None:
    """Ray Train's `train_loop_per_worker`. Returns why the run stopped, where it could not go on."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would repeat every report of every rank
    try:
        _train(job["job"])
    except TrainingStopped as error:
        return str(error)
    return None


def _train(job: Job) -> None:
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = prepare_device(config)

    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    stage = stage_of(config)(config, job.facts, index, rank=rank, ranks=ranks, device=device)
    engine = make_engine(
        stage.objective, train, stage.parameter_groups(), ranks=ranks, bf16=use_bf16(train, device)
    )
    done, cursor = _restore(engine, stage)
    training, left = stage.reader.index, train.steps - done
    steps = islice(walk(training.frames, training.shard, config.plan, cursor), left)
    stream = PlannedStream(
        stage.reader, config.plan, rank=rank, ranks=ranks, start=cursor, steps=left, done=done
    )
    clock, recorder = Clock(), Recorder(config, rank, stage.flops_per_frame, first_step=done)

    with stream, recorder:
        for number, planned in enumerate(steps, start=done + 1):  # so many are done after it
            stage.begin(number - 1)
            rates = stage.rates(number - 1)
            set_learning_rates(engine, rates)
            result = train_step(engine, stage, stream, planned, number - 1, config, clock)
            recorder.bad(result, planned)
            recorder.samples(number, result.samples)
            row = {
                "step": number,
                "epoch": planned.cursor.epoch,
                "epoch_step": planned.cursor.step,
                "loss": result.loss,
                "lr": max(rates),
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "frames": result.frames,
                "padding": round(planned.padding, 4),
                "skipped": int(engine.skipped_steps),
                **stage.columns(number - 1),
            }
            if _due(number, train.evaluate_every, train.steps):
                row |= stage.evaluate(number - 1)
            recorder.step(row, clock)
            if number == train.steps and rank == 0:
                _export(stage, config)
            if _due(number, train.checkpoint_every, train.steps):
                recorder.flush()
                with recorder.checkpoint():
                    _save(engine, stage, number, planned.following, row)


def train_step(
    engine,
    stage: Stage,
    stream: Iterator[Batch],
    planned: Step,
    step: int,
    config: StageConfig,
    clock: Clock,
) -> StepResult:
    """Global step number `step`: this rank's micro-batches forward and backward, then the optimizer."""
    clock.begin()
    ranks = dist.get_world_size()
    frames = stage.target_frames(planned, step)
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)  # summed loss, bad samples
    bad: list[BadSample] = []
    samples: list[tuple[str, int, int]] = []
    for _ in range(config.train.micro_batches // ranks):
        with clock.waiting():
            batch = next(stream)
        assert batch.cursor == planned.cursor
        loss = stage.loss(engine, batch, step, (config.train.seed, planned.cursor.epoch))
        engine.backward(loss / frames, scale_wrt_gas=False)
        totals[0] += loss.detach()  # on the device: nothing waits for it before the step's end
        totals[1] += len(batch.bad)
        bad += batch.bad
        rows = zip(batch.keys, batch.starts.tolist(), batch.frames.tolist(), batch.weight, strict=True)
        samples += [(key, start, count) for key, start, count, weight in rows if weight]
    engine.step()
    stage.end(step)
    dist.all_reduce(totals)
    loss, bad_anywhere = totals.tolist()
    clock.end()
    return StepResult(loss / frames, frames, bad, int(bad_anywhere), samples)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def prepare_device(config: StageConfig) -> torch.device:
    """The device that Ray gave this rank."""
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed's import
        torch.set_num_threads(config.scale.threads)
    return device


def _restore(engine, stage: Stage) -> tuple[int, Cursor]:
    """How many steps are done and where the data goes on: zero and the beginning for a new run."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, Cursor()
    with checkpoint.as_directory() as folder:
        path, state = engine.load_checkpoint(folder, tag=STATE_TAG)
    if path is None:
        raise TrainingStopped(f"checkpoint {checkpoint.path} cannot be loaded")
    stage.load_state(state["stage"])
    return state["step"], Cursor(**state["cursor"])


def _save(engine, stage: Stage, step: int, following: Cursor, row: dict[str, Any]) -> None:
    """A checkpoint of all ranks: each writes its own part, and Ray Train puts them into one folder."""
    with tempfile.TemporaryDirectory(prefix="xactor-checkpoint-") as folder:
        state = {"step": step, "cursor": vars(following), "stage": stage.state()}
        engine.save_checkpoint(folder, tag=STATE_TAG, client_state=state, save_latest=False)
        ray.train.report(
            row,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"checkpoint-{step:08d}",
        )


def _export(stage: Stage, config: StageConfig) -> None:
    with tempfile.TemporaryDirectory(prefix="xactor-export-") as folder:
        stage.export(Path(folder))
        RunFolder(config.run.storage, config.run.name).upload_folder(folder, EXPORT)
