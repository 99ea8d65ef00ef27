"""Train and sample the motion model: transformer, diffusion forcing, engine."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xactor.motion.engine import EngineFull, MotionEngine, sample_motion, stream_motion
    from xactor.motion.forcing import DiffusionForcing, ForcingBatch, draw
    from xactor.motion.forcing_config import ForcingConfig
    from xactor.motion.loading import load_motion_model
    from xactor.motion.sampling_config import SamplingConfig
    from xactor.motion.scheduler import MotionScheduler
    from xactor.motion.stream import MotionStream
    from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig

__all__ = [
    "DiffusionForcing",
    "EngineFull",
    "ForcingBatch",
    "ForcingConfig",
    "MotionEngine",
    "MotionScheduler",
    "MotionStream",
    "MotionTransformer",
    "MotionTransformerConfig",
    "SamplingConfig",
    "draw",
    "load_motion_model",
    "sample_motion",
    "stream_motion",
]

# The module that defines each name.
_MODULES = {
    "DiffusionForcing": "xactor.motion.forcing",
    "EngineFull": "xactor.motion.engine",
    "ForcingBatch": "xactor.motion.forcing",
    "ForcingConfig": "xactor.motion.forcing_config",
    "MotionEngine": "xactor.motion.engine",
    "MotionScheduler": "xactor.motion.scheduler",
    "MotionStream": "xactor.motion.stream",
    "MotionTransformer": "xactor.motion.transformer",
    "MotionTransformerConfig": "xactor.motion.transformer",
    "SamplingConfig": "xactor.motion.sampling_config",
    "draw": "xactor.motion.forcing",
    "load_motion_model": "xactor.motion.loading",
    "sample_motion": "xactor.motion.engine",
    "stream_motion": "xactor.motion.engine",
}


def __getattr__(name: str):
    # Import on first use, so that options and configurations load neither torch nor transformers.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
