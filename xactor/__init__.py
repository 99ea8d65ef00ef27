"""Animate portraits from audio (X-Actor). This package holds the models and imports neither Ray nor DeepSpeed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xactor.audio.encoder import LogMelEncoder, Wav2Vec2Encoder
    from xactor.motion import MotionScheduler, MotionTransformer, SamplingConfig
    from xactor.pipeline import XActorPipeline
    from xactor.render import MotionEncoder, ReferenceUNet, RenderConfig, Renderer, RendererUNet

__version__ = "0.1.0"
"""The package's version. The build reads it from this line, so it is written nowhere else."""

__all__ = [
    "LogMelEncoder",
    "MotionEncoder",
    "MotionScheduler",
    "MotionTransformer",
    "ReferenceUNet",
    "RenderConfig",
    "Renderer",
    "RendererUNet",
    "SamplingConfig",
    "Wav2Vec2Encoder",
    "XActorPipeline",
]

# The module that defines each name. model_index.json names a class as `xactor.<class>`, without its module, so that
# saved models still load when a class has moved to another module.
_MODULES = {
    "LogMelEncoder": "xactor.audio.encoder",
    "MotionEncoder": "xactor.render",
    "MotionScheduler": "xactor.motion",
    "MotionTransformer": "xactor.motion",
    "ReferenceUNet": "xactor.render",
    "RenderConfig": "xactor.render",
    "Renderer": "xactor.render",
    "RendererUNet": "xactor.render",
    "SamplingConfig": "xactor.motion",
    "Wav2Vec2Encoder": "xactor.audio.encoder",
    "XActorPipeline": "xactor.pipeline",
}


def __getattr__(name: str):
    # Import on first use, so that `import xactor` alone loads neither torch nor diffusers.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
