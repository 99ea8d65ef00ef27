"""The training loop: what one rank does from its planned stream to the optimizer step."""

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from xactor_platform.data.batch import Batch
from xactor_platform.data.index import BadSample, load_index
from xactor_platform.data.plan import Cursor, Step, walk
from xactor_platform.data.stream import PlannedStream
from xactor_platform.training.config import StageConfig, as_dict
from xactor_platform.training.engine import make_engine, set_learning_rates, use_bf16
from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.run.folder import EXPORT, RunFolder
from xactor_platform.training.run.health import TrainingStopped, Watch
from xactor_platform.training.run.notices import Notices
from xactor_platform.training.run.recorder import Clock, Recorder, StepResult
from xactor_platform.training.run.restore import Restored, newest_checkpoint
from xactor_platform.training.run.saver import Saver
from xactor_platform.training.run.snapshot import TAG
from xactor_platform.training.stage import Facts, Stage, stage_of


@dataclass(frozen=True)
class Job:
    """What the driver hands each rank. holder: of the run's lease."""

    config: StageConfig
    facts: Facts
    holder: str


@dataclass(frozen=True)
class Ending:
    """How the ranks came to an end. stopped: why they could not go on; asked: somebody wanted them to stop."""

    stopped: str | None = None
    asked: bool = False


def train_rank(job: dict[str, Job]) -> Ending:
    """Ray Train's `train_loop_per_worker`."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would repeat every report of every rank
    watch = Watch(job["job"].config.scale.collective_timeout_s)
    try:
        with watch.naming():
            return Ending(asked=_train(job["job"], watch))
    except TrainingStopped as error:
        return Ending(stopped=str(error))


def _train(job: Job, watch: Watch) -> bool:
    """Trains to the end, or until it is asked to stop: then True."""
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = prepare_device(config)

    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    stage = stage_of(config)(config, job.facts, index, rank=rank, ranks=ranks, device=device)
    folder = RunFolder(config.run.storage, config.run.name, config.run.storage_timeout_s)
    checkpoints = Checkpoints(folder, keep=train.keep_checkpoints, keep_best=train.keep_best)
    parameters = sum(p.numel() for p in stage.objective.parameters())
    with newest_checkpoint(checkpoints, parameters) as found:
        engine = make_engine(
            stage.objective,
            train,
            stage.parameter_groups(),
            ranks=ranks,
            bf16=use_bf16(train, device),
            universal=bool(found and found.universal),
        )
        watch.cover()
        done, cursor = _restore(engine, stage, found)
    training, left = stage.reader.index, train.steps - done
    steps = islice(walk(training.frames, training.shard, config.plan, cursor), left)
    stream = PlannedStream(
        stage.reader, config.plan, rank=rank, ranks=ranks, start=cursor, steps=left, done=done
    )
    clock, notices = Clock(device), Notices(folder, rank)
    recorder = Recorder(config, rank, stage.flops_per_frame, first_step=done)
    saver = Saver(
        checkpoints,
        rank=rank,
        ranks=ranks,
        token=recorder.token,
        parameters=parameters,
        config=as_dict(config),
        timeout_s=config.scale.collective_timeout_s,
        before_commit=lambda: recorder.before_commit(job.holder),
        committed=recorder.committed,
    )
    with recorder, saver, stream:
        for number, planned in enumerate(steps, start=done + 1):  # so many are done after it
            watch.step = number
            stage.begin(number - 1)
            rates = stage.rates(number - 1)
            set_learning_rates(engine, rates)
            result = train_step(engine, stage, stream, planned, number - 1, config, clock, notices.seen())
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
            recorder.step(row, clock, result.own_s)
            if number == train.steps and rank == 0:
                _export(stage, folder)
            saver.check()
            stop, leaving = notices.stop(result.notices), notices.leaving(result.notices)
            if stop or leaving or _due(number, train.checkpoint_every, train.steps):
                state = {"step": number, "cursor": vars(planned.following), "stage": stage.state()}
                saver.save(engine, number, state, row.get("held_out_loss"))
            if stop and number < train.steps:
                return True
    return False


def train_step(
    engine,
    stage: Stage,
    stream: Iterator[Batch],
    planned: Step,
    step: int,
    config: StageConfig,
    clock: Clock,
    notices: int = 0,
) -> StepResult:
    """Global step number `step`: this rank's micro-batches forward and backward, then the optimizer.

    notices: rank 0's, which all ranks learn of together.
    """
    clock.begin()
    ranks = dist.get_world_size()
    frames = stage.target_frames(planned, step)
    totals = torch.zeros(4, dtype=torch.float64, device=engine.device)  # loss, bad samples, notices, seconds
    bad: list[BadSample] = []
    samples: list[tuple[str, int, int]] = []
    for _ in range(config.train.micro_batches // ranks):
        with clock.waiting():
            batch = next(stream)
        assert batch.cursor == planned.cursor
        with clock.computing():
            loss = stage.loss(engine, batch, step, (config.train.seed, planned.cursor.epoch))
        engine.backward(loss / frames, scale_wrt_gas=False)
        totals[0] += loss.detach()  # on the device: nothing waits for it before the step's end
        totals[1] += len(batch.bad)
        bad += batch.bad
        rows = zip(batch.keys, batch.starts.tolist(), batch.frames.tolist(), batch.weight, strict=True)
        samples += [(key, start, count) for key, start, count, weight in rows if weight]
    engine.step()
    stage.end(step)
    totals[2], totals[3] = notices, clock.own_s()
    everyone = [torch.empty_like(totals) for _ in range(ranks)]
    dist.all_gather(everyone, totals)
    gathered = torch.stack(everyone).cpu()  # [ranks, 4]
    loss, bad_anywhere, noticed, _ = gathered.sum(0).tolist()
    clock.end()
    return StepResult(
        loss=loss / frames,
        frames=frames,
        bad=bad,
        bad_anywhere=int(bad_anywhere),
        samples=samples,
        notices=int(noticed),
        own_s=gathered[:, 3].tolist(),
    )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def prepare_device(config: StageConfig) -> torch.device:
    """The device that Ray gave this rank."""
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed's import
        torch.set_num_threads(config.scale.threads)
    return device


def _restore(engine, stage: Stage, found: Restored | None) -> tuple[int, Cursor]:
    """How many steps are done and where the data goes on: zero and the beginning for a new run."""
    if found is None:
        return 0, Cursor()
    path, state = engine.load_checkpoint(found.folder, tag=TAG)
    if path is None:
        raise TrainingStopped(f"checkpoint {found.manifest.folder} cannot be loaded")
    stage.load_state(state["stage"])
    return state["step"], Cursor(**state["cursor"])


def _export(stage: Stage, run: RunFolder) -> None:
    with tempfile.TemporaryDirectory(prefix="xactor-export-") as folder:
        stage.export(Path(folder))
        run.upload_folder(folder, EXPORT)
