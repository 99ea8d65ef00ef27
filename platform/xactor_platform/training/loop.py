"""Train on one rank: read its micro-batches in the planned order, and run the steps of the optimizer.

A rank is one worker process of a training. A global step is one optimizer step, which all ranks take together.
"""

import logging
import os
import pickle
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

from xactor_platform.data.batch import Batch
from xactor_platform.data.index import BadSample
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import Cursor, Step, planned_steps
from xactor_platform.data.stream import PlannedStream
from xactor_platform.training.engine import make_engine, place_steps, set_learning_rates, use_bf16
from xactor_platform.training.held_out import gather_bad_samples
from xactor_platform.training.prefetch import Prefetch
from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.run.clock import Clock
from xactor_platform.training.run.endings import RankResult, TrainingStopped
from xactor_platform.training.run.folder import EXPORT, RunFolder
from xactor_platform.training.run.health import Watch
from xactor_platform.training.run.lease import check_held
from xactor_platform.training.run.limits import Limits
from xactor_platform.training.run.notices import Notices
from xactor_platform.training.run.recorder import Recorder
from xactor_platform.training.run.restore import Restored, newest_checkpoint, refused_code
from xactor_platform.training.run.saver import Saver, agree_on_token
from xactor_platform.training.run.snapshot import TAG
from xactor_platform.training.train_config import Facts, StageConfig, as_dict
from xactor_platform.training.training_stage import TrainingStage


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Hold the results of a global step."""

    loss: float
    """Mean loss per frame over all ranks."""
    frames: int
    """Number of frames in that mean."""
    bad: list[BadSample]
    """Samples of all ranks that turned out to be unusable when they were read."""
    samples: list[tuple[str, int, int]]
    """This rank's samples: key of the clip, first frame in the clip, number of frames."""
    flags: int
    """Flags that rank 0 sent to all ranks, for example that the run was asked to stop; see `run/notices.py`."""
    own_s: list[float]
    """Seconds of the step that each rank spent without waiting for other ranks, [ranks]; see `Clock.own_s`."""


def train_rank(config: StageConfig, facts: Facts, holder: str) -> RankResult:
    """Train on this rank until the last step, or until the run is asked to stop.

    Args:
        config: the configuration of the run.
        facts: what the driver found out about the corpus.
        holder: the driver's name in the run's lease, the file that says which driver may train the run.
    """
    # At a lower log level, Ray Train would log every report of every rank.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    watch = Watch(config.scale.collective_timeout_s)
    try:
        with watch.naming():
            return RankResult(requested=_RankTraining(config, facts, holder, watch).run())
    except TrainingStopped as error:
        return RankResult(stopped=str(error))


class _RankTraining:
    """Build the model and the stream of a rank, restore the newest checkpoint, and run the remaining steps."""

    def __init__(self, config: StageConfig, facts: Facts, holder: str, watch: Watch):
        self._config, self._watch = config, watch
        train, context = config.train, ray.train.get_context()
        self._rank, ranks = context.get_world_rank(), context.get_world_size()
        self._device = device = prepare_device(config)
        index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction, warn=False)
        stage_class = config.training_stage()
        self._stage = stage_class(config, facts, index, rank=self._rank, ranks=ranks, device=device)
        self._folder = RunFolder.of(config.run)
        checkpoints = Checkpoints(self._folder, keep=train.keep_checkpoints, keep_best=train.keep_best)
        parameters = sum(p.numel() for p in self._stage.objective.parameters())
        with newest_checkpoint(checkpoints, parameters) as found:
            self._engine = make_engine(
                self._stage.objective,
                train,
                self._stage.parameter_groups(),
                ranks=ranks,
                bf16=use_bf16(train, device),
                universal=bool(found and found.universal),
            )
            watch.limit_groups()
            self._steps_done, cursor = _restore(self._engine, self._stage, found)
        clips, steps_left = self._stage.reader.index, train.steps - self._steps_done
        self._steps = islice(planned_steps(clips.frames, clips.shard, config.plan, cursor), steps_left)
        self._stream = PlannedStream(
            self._stage.reader,
            config.plan,
            rank=self._rank,
            ranks=ranks,
            start=cursor,
            steps=steps_left,
            done=self._steps_done,
        )
        self._clock, self._limits = Clock(device), Limits(config)
        self._notices = Notices(self._folder, self._rank)
        self._recorder = Recorder(
            config, self._folder, self._rank, self._stage.flops_per_frame, first_step=self._steps_done
        )
        self._saver = self._make_saver(checkpoints, ranks, parameters, holder)

    def _make_saver(self, checkpoints: Checkpoints, ranks: int, parameters: int, holder: str) -> Saver:
        def before_commit() -> None:
            # A checkpoint may become valid only if the log of its steps is stored, and if this rank's driver still
            # holds the run's lease.
            self._recorder.flush()
            check_held(self._folder, holder)

        return Saver(
            checkpoints,
            rank=self._rank,
            ranks=ranks,
            token=agree_on_token(),
            parameters=parameters,
            config=as_dict(self._config),
            timeout_s=self._config.scale.collective_timeout_s,
            before_commit=before_commit,
            committed=self._recorder.checkpoint,
        )

    def run(self) -> bool:
        """Train, and return whether the run was asked to stop before its last step."""
        batches = Prefetch(self._stream, self._stage, seed=self._config.train.seed, device=self._device)
        with self._recorder, self._saver, self._stream, batches:
            # No step is left, for example because train.steps was lowered to the step at which the run was stopped.
            # Then the run may have no export yet.
            if self._steps_done == self._config.train.steps and self._rank == 0:
                self._export()
            for number, planned in enumerate(self._steps, start=self._steps_done + 1):
                if self._step(number, planned, batches) and number < self._config.train.steps:
                    return True
        return False

    def _step(self, number: int, planned: Step, batches: Prefetch) -> bool:
        """Train, evaluate, record and save global step `number`, counted from 1. Return whether to stop after it."""
        train, step = self._config.train, number - 1
        self._watch.step = number
        self._stage.begin(step)
        rates = self._stage.rates(step)
        set_learning_rates(self._engine, rates)
        flags = self._notices.flags()
        result = train_step(
            self._engine, self._stage, batches, planned, step, self._config, self._clock, flags
        )
        self._recorder.bad_samples(result.bad)
        self._limits.check_samples(result.bad, planned)
        self._recorder.samples(number, result.samples)
        row: dict[str, Any] = {
            "step": number,
            "epoch": planned.cursor.epoch,
            "epoch_step": planned.cursor.step,
            "loss": result.loss,
            "lr": max(rates),
            "grad_norm": float(self._engine.get_global_grad_norm() or 0.0),
            "frames": result.frames,
            "padding": round(planned.padding, 4),
            "skipped": int(self._engine.skipped_steps),
            **self._stage.columns(step),
        }
        if _due(number, train.evaluate_every, train.steps):
            evaluation = self._stage.evaluate(step)
            row |= evaluation.figures
            self._recorder.bad_held_out_samples(evaluation.bad)
            self._limits.check_held_out(evaluation.bad, evaluation.samples)
        self._recorder.step(row, self._clock, result.own_s)
        self._limits.check_updates(number, row["skipped"])
        if number == train.steps and self._rank == 0:
            self._export()
        self._saver.check()
        stop, leaving = self._notices.stop(result.flags), self._notices.leaving(result.flags)
        if stop or leaving or _due(number, train.checkpoint_every, train.steps):
            state = {"step": number, "cursor": vars(planned.following), "stage": self._stage.state()}
            self._saver.save(self._engine, number, state, row.get("held_out_loss"))
        return stop

    def _export(self) -> None:
        """Write the trained model to the run's folder. It replaces an export that an earlier start wrote."""
        with tempfile.TemporaryDirectory(prefix="xactor-export-") as scratch:
            self._stage.export(Path(scratch))
            self._folder.upload_folder(scratch, EXPORT)


def train_step(
    engine: Any,
    stage: TrainingStage,
    batches: Iterator[tuple[Batch, Any]],
    planned: Step,
    step: int,
    config: StageConfig,
    clock: Clock,
    flags: int = 0,
) -> StepResult:
    """Run this rank's micro-batches of a global step forward and backward, then the optimizer.

    Args:
        engine: the DeepSpeed engine that wraps the stage's objective.
        stage: the stage to train.
        batches: this rank's micro-batches and their inputs, from `Prefetch`.
        planned: the step's plan.
        step: the global step, counted from 0.
        config: the configuration of the run.
        clock: measures the times of the step.
        flags: flags of `run/notices.py` on rank 0, and 0 on the other ranks. They are summed over the ranks, so all
            ranks receive rank 0's flags.
    """
    clock.begin()
    ranks = dist.get_world_size()
    frames = stage.target_frames(planned, step)
    # Sum of the losses, number of bad samples, flags, and seconds without waiting for other ranks.
    totals = torch.zeros(4, dtype=torch.float64, device=engine.device)
    bad: list[BadSample] = []
    samples: list[tuple[str, int, int]] = []
    for _ in range(config.train.micro_batches // ranks):
        with clock.waiting():
            batch, inputs = next(batches)
        assert batch.cursor == planned.cursor
        with clock.computing():
            loss = stage.loss(engine, inputs, step)
        # `frames` counts the whole step, so DeepSpeed must not divide by a number of micro-batches as well.
        engine.backward(loss / frames, scale_wrt_gas=False)
        # The losses are summed on the device: reading a value here would make each micro-batch wait for the GPU.
        totals[0] += loss.detach()
        totals[1] += len(batch.bad)
        bad += batch.bad
        rows = zip(batch.keys, batch.starts.tolist(), batch.frames.tolist(), batch.weight, strict=True)
        samples += [(key, start, count) for key, start, count, weight in rows if weight]
    engine.step()
    stage.end(step)
    totals[2], totals[3] = flags, clock.own_s()
    totals_of_ranks = [torch.empty_like(totals) for _ in range(ranks)]
    dist.all_gather(totals_of_ranks, totals)
    gathered = torch.stack(totals_of_ranks).cpu()  # [ranks, 4]
    loss, bad_anywhere, all_flags, _ = gathered.sum(0).tolist()
    clock.end()
    return StepResult(
        loss=loss / frames,
        frames=frames,
        bad=gather_bad_samples(bad) if bad_anywhere else [],
        samples=samples,
        flags=int(all_flags),
        own_s=gathered[:, 3].tolist(),
    )


def prepare_device(config: StageConfig) -> torch.device:
    """Return the device that Ray gave this rank, and make it the device that torch and DeepSpeed use."""
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # DeepSpeed reads this variable when it is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(config.scale.threads)
    else:
        torch.cuda.set_device(device)
    return device


def _due(step: int, every: int, last: int) -> bool:
    """Return whether periodic work is due after step `step`: every `every` steps, and always after the last step.

    If `every` is 0, the work is due after the last step only.
    """
    return step == last or (every > 0 and step % every == 0)


def _restore(engine: Any, stage: TrainingStage, found: Restored | None) -> tuple[int, Cursor]:
    """Load the checkpoint `found` into the engine and the stage. If it is None, the run is new.

    Returns:
        the number of steps done and the position in the data of the next step. Both are zero for a new run.
    """
    if found is None:
        return 0, Cursor()
    try:
        path, state = engine.load_checkpoint(found.folder, tag=TAG)
    except pickle.UnpicklingError as error:
        raise TrainingStopped(f"checkpoint {found.manifest.folder} {refused_code(error)}") from error
    if path is None:
        raise TrainingStopped(f"checkpoint {found.manifest.folder} cannot be loaded")
    place_steps(engine)
    stage.load_state(state["stage"])
    return state["step"], Cursor(**state["cursor"])
