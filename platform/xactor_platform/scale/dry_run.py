"""Run a step of a training on fake tensors, to see whether it works at its full size and fits its GPUs.

Fake tensors are torch's tensors with a shape and a type but no memory. The training's own code builds the model, plans
the micro-batch and runs forward and backward; weights are not read, see `published_layout`. DeepSpeed does not run on
fake tensors, so the memory of ZeRO-2 comes from the formulas in `memory`, and its gradients leave as they are made.

The fake tensors are on the CPU, because a torch without CUDA cannot run backward on others. So these parts of a GPU's
memory are not seen, and `overhead` stands for them:

- Workspaces of cuDNN and cuBLAS, buffers of NCCL, CUDA's context, and the allocator's rounding and fragmentation.
- Attention saves the same tensors on both. A GPU also copies a mask whose width is no multiple of 8, and rounds the
  queries of the log-sum-exp up to 32.
- Norms save mean and deviation in the type of their input on the CPU, and in float32 on a GPU: a few bytes per row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xactor.origin import AUDIO, LATENTS
from xactor.render.objective_config import PHASES
from xactor_platform.data.index import CONTROLS, LANDMARKS, CorpusShape, Index
from xactor_platform.data.plan import MicroBatch, plan_epoch
from xactor_platform.data.reading import MEMBERS
from xactor_platform.scale.live_memory import LiveMemory, TensorKind, held_bytes, tensors_in
from xactor_platform.scale.machine import Machine
from xactor_platform.scale.memory import OVERHEAD_BYTES, bucket_bytes, states
from xactor_platform.scale.published_layout import published_layouts
from xactor_platform.scale.report import Table
from xactor_platform.storage.location import Location
from xactor_platform.training.engine import use_bf16
from xactor_platform.training.stage1_config import Stage1Config
from xactor_platform.training.train_config import Facts, StageConfig
from xactor_platform.training.training_stage import TrainingStage

GIB = 2**30
# Clips of a shard in an assumed corpus.
_CLIPS_A_SHARD = 256


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Hold the memory of one rank in a step of a phase, in bytes. Stage 2 has one phase."""

    phase: str
    """Name of the phase."""
    samples: int
    """Number of samples in the micro-batch."""
    frames: int
    """Number of frames of the longest sample."""
    trained: int
    """Number of parameters that the optimizer holds."""
    parameters: float
    """Parameters, frozen ones included, and buffers of modules."""
    gradients: float
    """This rank's share of the gradients, in fp32."""
    optimizer: float
    """This rank's share of the weights in fp32 and of Adam's two moments."""
    averages: float
    """Moving averages of the weights. Stage 1 has them, complete on every rank."""
    buckets: float
    """DeepSpeed's communication buffers."""
    batch: float
    """The micro-batch."""
    kept: float
    """Activations that forward keeps for backward."""
    activations: float
    """Peak of all activations and of gradients that are not yet reduced."""
    update: float
    """Temporary tensors of Adam. By then the activations and the buckets are gone."""
    overhead: float = OVERHEAD_BYTES
    """Estimate of everything else."""
    largest: list[tuple[TensorKind, int, int]]
    """Tensors with the most bytes at the peak of the activations: the kind, the number, and their bytes together."""

    @property
    def states(self) -> float:
        """Return the bytes that stay between steps."""
        return self.parameters + self.gradients + self.optimizer + self.averages

    @property
    def total(self) -> float:
        """Return the peak of a step in bytes."""
        backward = self.buckets + self.batch + self.activations
        return self.states + max(backward, self.update) + self.overhead


def assumed_index(lengths: np.ndarray) -> Index:
    """Return the index of a corpus that does not exist, with clips of these lengths in frames, latents and videos."""
    count = len(lengths)
    shards = -(-count // _CLIPS_A_SHARD)
    members: list[str] = [*MEMBERS, "mp4", CONTROLS, LANDMARKS]
    places = {member: np.zeros(count, np.int64) for member in members}
    return Index(
        location=Location.parse("/assumed-corpus"),
        shard_names=tuple(f"train-{number:06d}.tar" for number in range(shards)),
        shard_sizes=(0,) * shards,
        key=np.array([f"clip-{number}" for number in range(count)], object),
        shard=np.arange(count, dtype=np.int32) // _CLIPS_A_SHARD,
        frames=np.asarray(lengths, np.int64),
        speaker=np.full(count, "", object),
        sync_confidence=np.full(count, np.nan, np.float32),
        latent_origin=np.full(count, "", object),
        audio_origin=np.full(count, "", object),
        digest=np.zeros(count, np.uint32),
        offset=places,
        length=places,
        header=places,
        crc={member: np.full(count, b"", object) for member in members},
        shape=CorpusShape(
            latent_width=512, audio_layers=4, audio_width=1024, motion_dtype="float16", audio_dtype="float16"
        ),
        bad=(),
    )


def dry_run(config: StageConfig, index: Index) -> list[StepMemory]:
    """Run a step of every phase of a training on fake tensors, as rank 0. Return the memory of each.

    Args:
        config: the configuration of the run, for GPUs.
        index: the corpus. Nothing is read from it: the pictures, latents and audio features are zeros.

    Raises:
        Exception: what the training itself would raise.
    """
    facts: Facts = {"audio_encoder": None, LATENTS: None, AUDIO: None}
    if index.shape is not None:
        facts["moments"] = ([0.0] * index.shape.latent_width, [1.0] * index.shape.latent_width)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, published_layouts(config) as located:
        stage = located.training_stage()(
            located, facts, index, rank=0, ranks=config.scale.ranks, device=torch.device("cpu")
        )
        # DeepSpeed converts the parameters, and leaves the buffers as they are.
        if use_bf16(config.train, torch.device("cuda")):
            for parameter in stage.objective.parameters():
                parameter.data = parameter.data.bfloat16()
    for group in stage.parameter_groups():
        for parameter in group:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    micro_batch = largest_micro_batch(config, index.training())
    return [_step(stage, config, phase, step, micro_batch, mode) for phase, step in _phases(config)]


def largest_micro_batch(config: StageConfig, index: Index) -> MicroBatch:
    """Return the micro-batch with the most padded frames in the first epoch, as a filler, which has no real data."""
    plan = plan_epoch(index.frames, index.shard, config.plan, 0)
    padded = np.maximum.reduceat(plan.frames, plan.edges[:-1]) * np.diff(plan.edges)
    step, place = divmod(int(padded.argmax()), config.plan.micro_batches)
    found = plan.step(step)[place]
    return MicroBatch(found.row, found.start, found.frames, is_filler=True)


def _phases(config: StageConfig) -> Iterator[tuple[str, int]]:
    """Yield the name and the last step of each phase that the training has."""
    if not isinstance(config, Stage1Config):
        yield "motion model", config.train.steps - 1
        return
    for phase in PHASES:
        first, end = config.train.span(phase)
        if first < end:
            yield phase, end - 1


def _step(
    stage: TrainingStage,
    config: StageConfig,
    phase: str,
    step: int,
    micro_batch: MicroBatch,
    mode: FakeTensorMode,
) -> StepMemory:
    request = stage.reader.request(micro_batch, step=step, epoch=0)
    batch = stage.reader.batch(request, stage.reader.read([request])[0])
    objective, live, batch_bytes = stage.objective, LiveMemory(), 0
    held = [*objective.parameters(), *objective.buffers()]
    live.exclude(held)

    def forward(*arguments: Any, **options: Any) -> Tensor:
        nonlocal batch_bytes
        batch_bytes = held_bytes(tensors_in((arguments, options)))
        with mode, live:
            return objective(*arguments, **options)

    with mode:
        stage.begin(step)
    loss = stage.loss(forward, stage.inputs(batch, (config.train.seed, 0)), step)
    kept = live.bytes
    with mode, live:
        loss.backward()
    groups = [sum(p.numel() for p in group) for group in stage.parameter_groups()]
    trained, ranks = sum(groups), config.scale.ranks
    _, gradients, optimizer = states(trained, ranks=ranks, stage=2)
    return StepMemory(
        phase=phase,
        samples=len(micro_batch.frames),
        frames=int(micro_batch.frames.max()),
        trained=trained,
        parameters=held_bytes(held),
        gradients=gradients,
        optimizer=optimizer,
        averages=held_bytes(tensors_in(stage.state())),
        buckets=bucket_bytes(trained, config.train),
        batch=batch_bytes,
        kept=kept,
        activations=live.peak_bytes,
        # DeepSpeed updates one group after another. Adam's denominator is in fp32.
        update=4.0 * max(groups) / ranks,
        largest=live.largest,
    )


def _drop_gradient(parameter: Tensor) -> None:
    """Drop a gradient as soon as it is complete: DeepSpeed copies it to its bucket."""
    parameter.grad = None


def memory_of_phases(steps: Sequence[StepMemory], title: str) -> Table:
    """Return the memory in GiB by part and phase."""
    parts = {
        "parameters": lambda s: s.parameters,
        "gradients": lambda s: s.gradients,
        "optimizer": lambda s: s.optimizer,
        "averages": lambda s: s.averages,
        "buckets": lambda s: s.buckets,
        "micro-batch": lambda s: s.batch,
        "activations": lambda s: s.activations,
        "(kept by forward)": lambda s: s.kept,
        "(Adam's update)": lambda s: s.update,
        "overhead": lambda s: s.overhead,
        "peak": lambda s: s.total,
    }
    return Table(
        title, [{"GiB": name, **{s.phase: part(s) / GIB for s in steps}} for name, part in parts.items()]
    )


def largest_tensors(steps: Sequence[StepMemory]) -> Table:
    """Return the tensors with the most bytes at the peak of each phase."""
    rows = [
        {
            "phase": step.phase,
            "GiB": size / GIB,
            "tensors": count,
            "shape": "x".join(map(str, kind.shape)),
            "type": kind.dtype,
            "made by": kind.operation,
        }
        for step in steps
        for kind, count, size in step.largest
    ]
    return Table("Largest activations", rows)


def misfit(step: StepMemory, config: StageConfig, machine: Machine) -> str | None:
    """Return one line that says why a step does not fit a GPU and which option helps; None if it fits."""
    room = machine.memory_bytes
    if step.total <= room:
        return None
    train, sample_frames = config.train, config.sample_frames
    left = room - step.states - step.overhead
    # The micro-batch and the activations grow with the number of frames.
    per_frame = (step.batch + step.activations) / train.budget_frames
    frames = int((left - step.buckets) / per_frame) // sample_frames * sample_frames
    if left < max(step.buckets, step.update):
        advice = f"its states need more ranks than --scale.ranks {config.scale.ranks}, or a larger GPU"
    elif not train.gradient_checkpointing and step.phase not in ("vae", "motion"):
        advice = "try --train.gradient-checkpointing"
    elif frames >= sample_frames:
        advice = f"try --train.budget-frames {frames}"
    else:
        advice = f"one sample of {sample_frames} frames is too much, it needs a larger GPU"
    return (
        f"{step.phase} does not fit: a rank needs {step.total / GIB:.1f} GiB, and {machine.name} has "
        f"{room / GIB:.1f} GiB: {advice}"
    )
