"""The motion model: transformer, diffusion forcing, sampling."""

from xactor.motion.engine import EngineFull, MotionEngine, MotionStream, sample_motion, stream_motion
from xactor.motion.forcing import DiffusionForcing, ForcingBatch, ForcingConfig, draw
from xactor.motion.sampling import SamplingConfig
from xactor.motion.scheduler import MotionScheduler
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
    "sample_motion",
    "stream_motion",
]
