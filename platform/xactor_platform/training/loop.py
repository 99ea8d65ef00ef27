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
from xactor_platform.training import stage2
from xactor_platform.training.config import Stage2Config
from xactor_platform.training.engine import learning_rate, make_engine, set_learning_rate, use_bf16
from xactor_platform.training.recorder import Clock, Recorder, StepResult, TrainingStopped
from xactor_platform.training.run_folder import EXPORT, RunFolder

STATE_TAG = "state"


@dataclass(frozen=True)
class Job:
    """What the driver hands each rank."""

    config: Stage2Config
    moments: tuple[list[float], list[float]]
    audio_encoder: str | None


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
    objective = stage2.build_objective(config, index.frame_shape, job.moments)
    engine = make_engine(objective, train, ranks=ranks, bf16=use_bf16(train, device))
    done, cursor = _restore(engine)
    training, left = index.training(), train.steps - done
    steps = islice(walk(training.frames, training.shard, config.plan, cursor), left)
    stream = PlannedStream(training, config.plan, rank=rank, ranks=ranks, start=cursor, steps=left)
    held_out = stage2.HeldOut(index, config, rank=rank, ranks=ranks)
    clock, recorder = Clock(), Recorder(config, rank, engine, first_step=done)

    with stream, recorder:
        for number, step in enumerate(steps, start=done + 1):
            rate = learning_rate(number - 1, train)
            set_learning_rate(engine, rate)
            result = train_step(engine, stream, step, config, clock)
            recorder.bad(result, step)
            recorder.samples(number, result.samples)
            row = {
                "step": number,
                "epoch": step.cursor.epoch,
                "loss": result.loss,
                "lr": rate,
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "frames": step.frames,
                "padding": round(step.padding, 4),
                "skipped": int(engine.skipped_steps),
            }
            if _due(number, train.evaluate_every, train.steps):
                row |= held_out.evaluate(objective, device)
            recorder.step(row, clock)
            if number == train.steps and rank == 0:
                _export(objective, config, job.audio_encoder)
            if _due(number, train.checkpoint_every, train.steps):
                recorder.flush()
                _save(engine, number, step.following, row)


def train_step(engine, stream: Iterator[Batch], step: Step, config: Stage2Config, clock: Clock) -> StepResult:
    """One global step: this rank's micro-batches forward and backward, then the optimizer."""
    clock.begin()
    ranks = dist.get_world_size()
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)  # summed loss, bad samples
    bad: list[BadSample] = []
    samples: list[tuple[str, int, int]] = []
    for _ in range(config.train.micro_batches // ranks):
        with clock.waiting():
            batch = next(stream)
        assert batch.cursor == step.cursor
        ready = stage2.forcing_batch(
            batch, seed=config.train.seed, epoch=step.cursor.epoch, model=engine.module.model, config=config
        )
        loss = engine(ready.to(engine.device))
        engine.backward(loss / step.frames, scale_wrt_gas=False)
        totals[0] += loss.detach()  # on the device: nothing waits for it before the step's end
        totals[1] += len(batch.bad)
        bad += batch.bad
        rows = zip(batch.keys, batch.starts.tolist(), batch.frames.tolist(), batch.weight, strict=True)
        samples += [(key, start, frames) for key, start, frames, weight in rows if weight]
    engine.step()
    dist.all_reduce(totals)
    loss, bad_anywhere = totals.tolist()
    clock.end()
    return StepResult(loss / step.frames, bad, int(bad_anywhere), samples)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def prepare_device(config: Stage2Config) -> torch.device:
    """The device that Ray gave this rank."""
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed's import
        torch.set_num_threads(config.scale.threads)
    return device


def _restore(engine) -> tuple[int, Cursor]:
    """How many steps are done and where the data goes on: zero and the beginning for a new run."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, Cursor()
    with checkpoint.as_directory() as folder:
        path, state = engine.load_checkpoint(folder, tag=STATE_TAG)
    if path is None:
        raise TrainingStopped(f"checkpoint {checkpoint.path} cannot be loaded")
    return state["step"], Cursor(**state["cursor"])


def _save(engine, step: int, following: Cursor, row: dict[str, Any]) -> None:
    """A checkpoint of all ranks: each writes its own part, and Ray Train puts them into one folder."""
    with tempfile.TemporaryDirectory(prefix="xactor-checkpoint-") as folder:
        engine.save_checkpoint(
            folder, tag=STATE_TAG, client_state={"step": step, "cursor": vars(following)}, save_latest=False
        )
        ray.train.report(
            row,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"checkpoint-{step:08d}",
        )


def _export(objective, config: Stage2Config, audio_encoder: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="xactor-export-") as folder:
        stage2.export(objective, Path(folder), audio_encoder)
        RunFolder(config.run.storage, config.run.name).upload_folder(folder, EXPORT)
