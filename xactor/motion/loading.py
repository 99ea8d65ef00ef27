"""Load a motion model from a folder: the transformer with its latents' moments, and the scheduler."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from xactor.model_folder import MOTION_COMPONENTS
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig
from xactor.randomness import into_own_memory

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""Errors that libraries raise on folders they cannot load."""


def load_motion_model(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MotionTransformer:
    """Load the motion model of a model folder or of stage 2's export, ready to sample.

    The latents' moments are part of the transformer. The scheduler has no state, so it is not returned. Only its kind
    is checked: it must be the scheduler with which the engine samples.

    Args:
        folder: Holds motion/ and motion_scheduler/.
        device: Where the model computes.
        dtype: Type of the weights.

    Raises:
        ValueError: A component is missing, truncated or of another kind. The message names it.
    """
    for name in MOTION_COMPONENTS:
        if not Path(folder, name).is_dir():
            raise ValueError(f"{folder}: the component {name}/ is missing")
    # The component that is being loaded, for the error's message.
    name = "motion_scheduler"
    try:
        MotionScheduler.from_pretrained(Path(folder, name))
        name = "motion"
        return load_transformer(Path(folder, name), dtype=dtype).to(device)  # pyright: ignore[reportArgumentType]
    except LOADING_ERRORS as error:
        raise ValueError(f"{folder}: the component {name}/ cannot be loaded: {error}") from error


def load_transformer(folder: Path, **options: Any) -> MotionTransformer:
    """Load a motion transformer, in evaluation mode.

    Args:
        folder: The component's own folder, with config.json and the weights.
        **options: Options of transformers' `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: The folder holds another model, or weights are missing. Libraries may raise other LOADING_ERRORS.
    """
    # transformers would also load the config of another model, and would leave the weights random.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != MotionTransformerConfig.model_type:
        kind = config.get("model_type", config.get("_class_name"))
        raise ValueError(f"model_type must be {MotionTransformerConfig.model_type}, got {kind}")
    model, info = MotionTransformer.from_pretrained(folder, output_loading_info=True, **options)  # pyright: ignore
    if info["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
    into_own_memory(model)
    return model
