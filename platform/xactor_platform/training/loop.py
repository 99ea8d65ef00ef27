"""The training loop: what one rank does from its planned stream to the optimizer step."""

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from xactor_platform.index import BadSample, load_index
from xactor_platform.plan import Cursor, walk
from xactor_platform.stream import PlannedStream
from xactor_platform.training import stage2
from xactor_platform.training.config import Stage2Config
from xactor_platform.training.engine import learning_rate, make_engine, peak_flops, set_learning_rate
from xactor_platform.training.run_folder import BAD, EXPORT, METRICS, SAMPLES, RunFolder, RunLog

STATE_TAG = "state"
PROGRESS_S = 5.0  # between progress lines


class TrainingStopped(ValueError):
    """The run cannot go on, and every rank knows it: nothing to retry."""


@dataclass(frozen=True)
class Job:
    """What the driver hands each rank."""

    config: Stage2Config
    moments: tuple[list[float], list[float]]
    audio_encoder: str | None


def train_rank(job: dict[str, Job]) -> None:
    """Ray Train's `train_loop_per_worker`."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would repeat every report of every rank
    try:
        _train(job["job"])
    except TrainingStopped as error:
        ray.train.report({"error": str(error)})


def _train(job: Job) -> None:
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = _prepare_device(config)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")

    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    objective = stage2.build_objective(config, index.frame_shape, job.moments)
    engine = make_engine(objective, train, ranks=ranks, bf16=bf16)
    held_out = stage2.HeldOut(index, config, rank=rank, ranks=ranks)
    done, cursor = _restore(engine)
    training = index.training()
    recorder = Recorder(config, rank, engine, first_step=done)
    steps = islice(walk(training.frames, training.shard, config.plan, cursor), train.steps - done)

    stream = PlannedStream(
        training, config.plan, rank=rank, ranks=ranks, start=cursor, steps=train.steps - done
    )
    with stream, recorder:
        for number, step in enumerate(steps, start=done + 1):
            recorder.begin()
            rate = learning_rate(number - 1, train)
            set_learning_rate(engine, rate)
            total = torch.zeros(2, dtype=torch.float64)  # summed loss, bad samples
            bad: list[BadSample] = []
            samples: list[list[Any]] = []
            for _ in range(train.micro_batches // ranks):
                with recorder.waiting():
                    batch = next(stream)
                assert batch.cursor == step.cursor
                ready = stage2.forcing_batch(
                    batch, seed=train.seed, epoch=step.cursor.epoch, model=objective.model, config=config
                )
                loss = engine(ready.to(device))
                engine.backward(loss / step.frames, scale_wrt_gas=False)
                total += torch.tensor([float(loss.detach()), len(batch.bad)])
                bad += batch.bad
                samples += [
                    [key, int(start), int(frames)]
                    for key, start, frames, weight in zip(
                        batch.keys, batch.starts, batch.frames, batch.weight, strict=True
                    )
                    if weight
                ]
            engine.step()

            total = total.to(device)
            dist.all_reduce(total)
            recorder.bad(bad, int(total[1]), samples_seen=sum(len(m.row) for m in step.micro_batches))
            recorder.samples(number, samples, ranks)
            row = {
                "step": number,
                "epoch": step.cursor.epoch,
                "loss": float(total[0]) / step.frames,
                "lr": rate,
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "frames": step.frames,
                "padding": round(step.padding, 4),
                "skipped": int(engine.skipped_steps),
            }
            if _due(number, train.evaluate_every, train.steps):
                sums = held_out.loss(objective, device)
                dist.all_reduce(sums)
                if sums[1]:
                    row["held_out_loss"] = float(sums[0] / sums[1])
            recorder.end(row)
            if number == train.steps and rank == 0:
                _export(objective, config, job.audio_encoder)
            if _due(number, train.checkpoint_every, train.steps):
                recorder.flush()
                _save(engine, number, step.following, row)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _prepare_device(config: Stage2Config) -> torch.device:
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


class Recorder:
    """Rank 0 writes down what happened in every step, and shows it as it goes."""

    def __init__(self, config: Stage2Config, rank: int, engine, *, first_step: int):
        self._config, self._rank, self._first = config, rank, first_step
        folder = RunFolder(config.run.storage, config.run.name)
        wanted = (METRICS, BAD) + ((SAMPLES,) if config.train.log_samples else ())
        self._attempt = 0
        if rank == 0:
            self._attempt = max((row.get("attempt", 0) for row in folder.read_lines(METRICS)), default=0) + 1
        self._logs = {name: RunLog(folder, name) for name in wanted} if rank == 0 else {}
        self._flops_a_frame = 6 * sum(p.numel() for p in engine.module.parameters())
        self._peak = peak_flops()
        self._bad = self._seen = 0
        self._started = self._shown = time.perf_counter()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc) -> None:
        for log in self._logs.values():
            log.close()

    def begin(self) -> None:
        self._begun, self._waited = time.perf_counter(), 0.0

    def waiting(self) -> "Recorder._Wait":
        """Time spent inside counts as waiting for data."""
        return Recorder._Wait(self)

    class _Wait:
        def __init__(self, recorder: "Recorder"):
            self._recorder = recorder

        def __enter__(self) -> None:
            self._from = time.perf_counter()

        def __exit__(self, *exc) -> None:
            self._recorder._waited += time.perf_counter() - self._from

    def bad(self, mine: list[BadSample], everyones: int, *, samples_seen: int) -> None:
        """Count the samples found bad when they were read; past the bound the run stops, on all ranks alike."""
        self._seen += samples_seen
        self._bad += everyones
        if not everyones:
            return
        named: list[list[BadSample] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(named, mine)
        rows = [sample for rank in named for sample in rank or []]
        if BAD in self._logs:
            for sample in rows:
                self._logs[BAD].write(vars(sample))
        bound = self._config.data.max_bad_fraction
        if self._bad > bound * self._seen:
            raise TrainingStopped(
                f"{self._bad} of {self._seen} samples read so far are bad, more than data.max_bad_fraction "
                f"({bound:g}) allows; the last: {rows[-1]}"
            )

    def samples(self, step: int, mine: list[list[Any]], ranks: int) -> None:
        """With train.log_samples: who trained on what."""
        if not self._config.train.log_samples:
            return
        gathered: list[list[list[Any]] | None] = [None] * ranks
        dist.all_gather_object(gathered, mine)
        if SAMPLES in self._logs:
            for rank, samples in enumerate(gathered):
                row = {"step": step, "attempt": self._attempt, "rank": rank, "samples": samples}
                self._logs[SAMPLES].write(row)

    def end(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl: `row` and the step's times; now and then a line of progress."""
        if self._rank:
            return
        seconds = time.perf_counter() - self._begun
        rate = row["frames"] / seconds
        ranks = dist.get_world_size()
        row["step_s"] = round(seconds, 4)
        row["data_wait_s"] = round(self._waited, 4)
        row["frames_per_s"] = round(rate, 1)
        row["mfu"] = rate * self._flops_a_frame / (self._peak * ranks) if self._peak else None
        row["attempt"] = self._attempt
        self._logs[METRICS].write(row)
        self._show(row)

    def flush(self) -> None:
        for log in self._logs.values():
            log.flush()

    def _show(self, row: dict[str, Any]) -> None:
        now, steps = time.perf_counter(), self._config.train.steps
        if now - self._shown < PROGRESS_S and "held_out_loss" not in row and row["step"] != steps:
            return
        self._shown = now
        pace = (now - self._started) / (row["step"] - self._first)
        left = int(pace * (steps - row["step"]))
        held_out = f"  held-out {row['held_out_loss']:.4f}" if "held_out_loss" in row else ""
        print(
            f"step {row['step']}/{steps}  epoch {row['epoch']}  loss {row['loss']:.4f}{held_out}  "
            f"lr {row['lr']:.1e}  {row['frames_per_s']:,.0f} frames/s  "
            f"data wait {row['data_wait_s'] / row['step_s']:.0%}  {left // 60}:{left % 60:02d} left",
            flush=True,
        )
