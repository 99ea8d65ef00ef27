"""The motion model: transformer, diffusion forcing, sampling."""

from xactor.motion.forcing import DiffusionForcing, ForcingBatch, ForcingConfig, draw
from xactor.motion.sampler import SamplingConfig, sample_motion, stream_motion
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig

__all__ = [
    "DiffusionForcing",
    "ForcingBatch",
    "ForcingConfig",
    "MotionScheduler",
    "MotionTransformer",
    "MotionTransformerConfig",
    "SamplingConfig",
    "draw",
    "sample_motion",
    "stream_motion",
]
