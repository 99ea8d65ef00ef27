"""X-Actor: portraits that act from audio. This package holds the models and imports neither Ray nor DeepSpeed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xactor.audio.encoder import LogMelEncoder, Wav2Vec2Encoder
    from xactor.motion import MotionScheduler, MotionTransformer, SamplingConfig
    from xactor.pipeline import XActorPipeline
    from xactor.render import MotionEncoder, ReferenceUNet, RenderConfig, Renderer, RendererUNet

__version__ = "0.1.0"
"""The one source of the version: the build reads it from here."""

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

# The module that defines each name. model_index.json names components by this package, so that they may move.
_HOMES = {
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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
