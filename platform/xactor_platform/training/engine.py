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
    config: TrainConfig, *, ranks: int, bf16: bool, universal: bool = False
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Its defaults are stated where they matter.

    A step has any number of backward passes (`managed_gradient_accumulation` is off), and gradients are summed over the
    ranks. The loss is divided by the number of frames of the step before the backward pass. All ranks know this number
    from the plan.

    Args:
        config: options of the optimization.
        ranks: number of ranks.
        bf16: whether to train in bf16.
        universal: whether the checkpoint to load was converted from another number of ranks.
    """
    return {
        # The next three are not used: micro-batches come from the plan.
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
            },
        },
        # Never print.
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
    """Make the engine around the objective, in an existing process group.

    Args:
        objective: model and loss in one module.
        config: options of the optimization.
        groups: parameters, in groups that each have their own learning rate.
        ranks: number of ranks.
        bf16: whether to train in bf16.
        universal: whether the checkpoint to load was converted from another number of ranks.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # For CPU ranks, DeepSpeed would compile its own communication operator. That takes 45 s on a fresh machine, needs a
    # compiler on every node, and waits for ever if an earlier build was killed and left its lock. Without the operator
    # DeepSpeed uses gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls a torch function by its old, deprecated name.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    engine, *_ = deepspeed.initialize(
        model=objective,
        model_parameters=[{"params": list(group)} for group in groups],  # pyright: ignore[reportArgumentType]
        config=deepspeed_config(config, ranks=ranks, bf16=bf16, universal=universal),
        dist_init_required=False,
    )
    return engine


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to train in bf16 on a device."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def learning_rate(
    step: int, config: TrainConfig, *, peak: float | None = None, steps: int | None = None
) -> float:
    """Return the learning rate of a step. It depends on the arguments alone, so a checkpoint holds no scheduler state.

    Args:
        step: step of the run or of its phase, counted from 0.
        config: options of the optimization.
        peak: the highest rate; by default the config's.
        steps: number of steps; by default the config's.
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
    # A cosine from the peak down to a tenth of it.
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def set_learning_rates(engine, rates: Sequence[float]) -> None:
    """Set the learning rate of each group.

    A rate of 0 leaves the parameters bit-equal, because AdamW scales the weight decay by the rate too.
    """
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s by GPU, from NVIDIA's data sheets."""


def peak_flops() -> float | None:
    """Return this GPU's bf16 peak in FLOP/s; None without a GPU and for a GPU that is not in PEAK_FLOPS."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for gpu, peak in PEAK_FLOPS.items() if gpu in name), None)
