"""Make the DeepSpeed engine: ZeRO-2, with gradients that are summed over micro-batches and ranks, not averaged."""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xactor_platform.training.train_config import TrainConfig


def deepspeed_config(
    config: TrainConfig, *, ranks: int, bf16: bool, universal: bool = False, fused: bool = False
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. A default value is stated where the training depends on it.

    A global step is one optimizer step. It may have any number of backward passes, because
    `managed_gradient_accumulation` is off. Gradients are summed over these passes and over the ranks. To make the sum a
    mean, the training loop divides each loss by the number of frames of the whole step before the backward pass. All
    ranks know this number from the plan of the epoch.

    Args:
        config: options of the optimization.
        ranks: number of ranks.
        bf16: whether to train in bf16.
        universal: whether the checkpoint to load is in DeepSpeed's universal form, because it was written by another
            number of ranks.
        fused: whether AdamW updates all weights in one kernel.
    """
    return {
        # The next three values have no effect, because the micro-batches come from the plan of the epoch.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "sum",
        "data_types": {"grad_accum_dtype": "fp32"},
        "gradient_clipping": config.clip_norm,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": config.overlap_comm,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            # Both bucket sizes are numbers of elements, not of bytes.
            "allgather_bucket_size": 200_000_000,
            "reduce_bucket_size": 200_000_000,
        },
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": [0.9, 0.99],
                "eps": 1e-8,
                "weight_decay": config.weight_decay,
                "torch_adam": True,
                "fused": fused,
            },
        },
        # More steps than any training has, so that DeepSpeed never prints its own progress.
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def make_engine(
    objective: nn.Module,
    config: TrainConfig,
    groups: Sequence[Sequence[nn.Parameter]],
    *,
    ranks: int,
    bf16: bool,
    universal: bool = False,
):
    """Return a DeepSpeed engine that wraps the objective. The process group of the ranks must exist.

    Args:
        objective: model and loss in one module.
        config: options of the optimization.
        groups: parameters, in groups that each have their own learning rate.
        ranks: number of ranks.
        bf16: whether to train in bf16.
        universal: see `deepspeed_config`.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # For ranks on CPUs, DeepSpeed would compile its own communication operator. The build takes 45 s on a fresh
    # machine, needs a compiler on every node, and waits for ever if an earlier build was killed and left its lock.
    # Without the operator DeepSpeed uses gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Hide a warning that users cannot act on: DeepSpeed calls a torch function by its old, deprecated name.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    engine, *_ = deepspeed.initialize(
        model=objective,
        model_parameters=[{"params": list(group)} for group in groups],  # pyright: ignore[reportArgumentType]
        config=deepspeed_config(config, ranks=ranks, bf16=bf16, universal=universal, fused=use_fused_adam()),
        dist_init_required=False,
    )
    return engine


def use_fused_adam() -> bool:
    """Return whether AdamW updates all weights in one kernel, as it does where DeepSpeed uses a GPU."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    return accelerator is not None and accelerator.device_name() == "cuda"


def place_steps(engine) -> None:
    """Move AdamW's numbers of steps to the devices of the weights, where a fused AdamW needs them.

    DeepSpeed leaves them on the CPU when it loads a checkpoint in its universal form.
    """
    for weights, state in engine.optimizer.optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(weights.device, torch.float32)


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to train in bf16 on a device."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def learning_rate(
    step: int, config: TrainConfig, *, peak: float | None = None, steps: int | None = None
) -> float:
    """Return the learning rate of a step. It depends on the arguments alone, so a checkpoint holds no scheduler state.

    Args:
        step: the step, counted from 0. A training with phases counts from the first step of the current phase.
        config: options of the optimization.
        peak: the highest rate; by default `config.learning_rate`.
        steps: number of steps of the run, or of the phase; by default `config.steps`.
    """
    if peak is None:
        peak = config.learning_rate
    if steps is None:
        steps = config.steps
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    # The cosine falls from the peak to a tenth of the peak.
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def set_learning_rates(engine, rates: Sequence[float]) -> None:
    """Set the learning rate of each group of parameters.

    A rate of 0 leaves the parameters of its group unchanged to the bit, because AdamW scales the weight decay by the
    rate too.
    """
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Peak bf16 FLOP/s without sparsity, by a part of the GPU's name, from NVIDIA's data sheets."""


def peak_flops() -> float | None:
    """Return this GPU's bf16 peak in FLOP/s; None without a GPU and for a GPU that is not in PEAK_FLOPS."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for gpu, peak in PEAK_FLOPS.items() if gpu in name), None)
