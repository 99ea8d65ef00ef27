"""Render motion latents and one portrait to frames (Paper 3.1)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xactor.render.components import Components, ddim_scheduler, published_components, random_components
    from xactor.render.motion_encoder import MotionEncoder
    from xactor.render.objective import RenderObjective
    from xactor.render.objective_config import PHASES, ObjectiveConfig, Phase
    from xactor.render.reference import ReferenceUNet
    from xactor.render.renderer import Reference, Renderer, Window
    from xactor.render.unet import RendererUNet
    from xactor.render.windows import Blend, Cutter, RenderConfig, render_windows

__all__ = [
    "PHASES",
    "Blend",
    "Components",
    "Cutter",
    "MotionEncoder",
    "ObjectiveConfig",
    "Phase",
    "Reference",
    "ReferenceUNet",
    "RenderConfig",
    "RenderObjective",
    "Renderer",
    "RendererUNet",
    "Window",
    "ddim_scheduler",
    "published_components",
    "random_components",
    "render_windows",
]

# The module that defines each name.
_MODULES = {
    "Blend": "xactor.render.windows",
    "Components": "xactor.render.components",
    "Cutter": "xactor.render.windows",
    "MotionEncoder": "xactor.render.motion_encoder",
    "ObjectiveConfig": "xactor.render.objective_config",
    "PHASES": "xactor.render.objective_config",
    "Phase": "xactor.render.objective_config",
    "Reference": "xactor.render.renderer",
    "ReferenceUNet": "xactor.render.reference",
    "RenderConfig": "xactor.render.windows",
    "RenderObjective": "xactor.render.objective",
    "Renderer": "xactor.render.renderer",
    "RendererUNet": "xactor.render.unet",
    "Window": "xactor.render.renderer",
    "ddim_scheduler": "xactor.render.components",
    "published_components": "xactor.render.components",
    "random_components": "xactor.render.components",
    "render_windows": "xactor.render.windows",
}


def __getattr__(name: str):
    # Import on first use, so that configurations parse without torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
