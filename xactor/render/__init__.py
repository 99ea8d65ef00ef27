"""The renderer: motion latents and one portrait to frames (Paper 3.1)."""

from xactor.render.motion_encoder import MotionEncoder
from xactor.render.objective import PHASES, ObjectiveConfig, Phase, RenderObjective
from xactor.render.parts import Parts, ddim_scheduler, published_parts, random_parts
from xactor.render.reference import ReferenceUNet
from xactor.render.renderer import Blend, Cutter, Reference, RenderConfig, Renderer, Window, render_windows
from xactor.render.unet import RendererUNet

__all__ = [
    "PHASES",
    "Blend",
    "Cutter",
    "MotionEncoder",
    "ObjectiveConfig",
    "Parts",
    "Phase",
    "Reference",
    "ReferenceUNet",
    "RenderConfig",
    "RenderObjective",
    "Renderer",
    "RendererUNet",
    "Window",
    "ddim_scheduler",
    "published_parts",
    "random_parts",
    "render_windows",
]
