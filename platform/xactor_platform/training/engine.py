"""The DeepSpeed engine: ZeRO-2 over planned micro-batches whose gradients are summed, not averaged."""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xactor_platform.training.config import TrainConfig


def deepspeed_config(
    config: TrainConfig, *, ranks: int, bf16: bool, universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration, every default that matters stated.

    Any number of backwards makes a step (`managed_gradient_accumulation` off), and ranks add their gradients: the
    loss is divided by the step's frames before, which all ranks know from the plan.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # not used: batches come from the plan
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
    """The engine around the objective, in a process group that exists already. Each group has its own learning rate.

    universal: what it will load was written by another number of ranks, and converted.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Between CPU ranks DeepSpeed would compile an operator of its own: 45 s on a fresh machine, a compiler on every
    # node, and a wait for ever where an earlier build was killed and left its lock. Gloo, which it falls back to, has
    # none of these.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls a name that torch renamed.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    engine, *_ = deepspeed.initialize(
        model=objective,
        model_parameters=[{"params": list(group)} for group in groups],  # pyright: ignore[reportArgumentType]
        config=deepspeed_config(config, ranks=ranks, bf16=bf16, universal=universal),
        dist_init_required=False,
    )
    return engine


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def learning_rate(
    step: int, config: TrainConfig, *, peak: float | None = None, steps: int | None = None
) -> float:
    """The rate of step `step` of `steps`, the highest being `peak`; by default the config's.

    A pure function, so that resume needs no state of it.
    """
    peak, steps = config.learning_rate if peak is None else peak, config.steps if steps is None else steps
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def set_learning_rates(engine, rates: Sequence[float]) -> None:
    """Of each group. Where it is 0 the group's parameters stay as they are, bit by bit, weight decay included."""
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # bf16, dense, from NVIDIA's data sheets


def peak_flops() -> float | None:
    """This GPU's bf16 peak in FLOP/s; None on a CPU and on a GPU that the table lacks."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)
