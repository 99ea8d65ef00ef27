"""Load a motion model from a folder, and check the scheduler that is saved with it."""

import json
from pathlib import Path
from typing import Any

import torch

from xactor.model_folder import MOTION_COMPONENTS, loading
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig
from xactor.randomness import into_own_memory


def load_motion_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> MotionTransformer:
    """Load the motion transformer, in evaluation mode.

    The transformer holds the mean and standard deviation of the latents. The scheduler has no state, so it is not
    returned. Only its kind is checked: it must be the one that the motion engine uses for sampling.

    Args:
        folder: A model folder, or the export of stage 2, which trains the transformer. Holds motion/ and
            motion_scheduler/.
        device: Where the model computes.
        dtype: Type of the weights.
        mapped: Leave weights that have this type already in the file's pages, which the processes of a machine share.
            By default each process copies them. On a CPU the copy is rounded as the weights were after training.

    Raises:
        ValueError: A component is missing, truncated or of another kind. The message names the component.
    """
    for name in MOTION_COMPONENTS:
        if not Path(folder, name).is_dir():
            raise ValueError(f"{folder}: the component {name}/ is missing")
    with loading(folder, "motion_scheduler", MotionScheduler.__name__):
        MotionScheduler.from_pretrained(Path(folder, "motion_scheduler"))
    with loading(folder, "motion", MotionTransformer.__name__):
        model = load_transformer(Path(folder, "motion"), dtype=dtype, mapped=mapped)
        return model.to(device)  # pyright: ignore[reportArgumentType]


def load_transformer(folder: Path, *, mapped: bool = False, **options: Any) -> MotionTransformer:
    """Load a motion transformer, in evaluation mode.

    Args:
        folder: The transformer's own folder, with config.json and the weights.
        mapped: See `load_motion_model`.
        **options: Options of transformers' `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: The folder holds another kind of model, or weights are missing.
        Exception: A library cannot load the folder.
    """
    # Without this check, transformers would accept the config of another kind of model and leave the weights random.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != MotionTransformerConfig.model_type:
        kind = config.get("model_type", config.get("_class_name"))
        raise ValueError(f"model_type must be {MotionTransformerConfig.model_type}, got {kind}")
    model, info = MotionTransformer.from_pretrained(folder, output_loading_info=True, **options)  # pyright: ignore
    if info["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
    if not mapped:
        into_own_memory(model)
    return model
