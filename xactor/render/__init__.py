"""The renderer: motion latents and one portrait to frames (Paper 3.1)."""

from xactor.render.attention import ReferenceFeatures
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.objective import PHASES, ObjectiveConfig, Phase, RenderObjective
from xactor.render.parts import Parts, ddim_scheduler, published_parts, random_parts
from xactor.render.reference import ReferenceUNet
from xactor.render.renderer import Blend, RenderConfig, Renderer, render_windows
from xactor.render.unet import RendererUNet

__all__ = [
    "PHASES",
    "Blend",
    "MotionEncoder",
    "ObjectiveConfig",
    "Parts",
    "Phase",
    "ReferenceFeatures",
    "ReferenceUNet",
    "RenderConfig",
    "RenderObjective",
    "Renderer",
    "RendererUNet",
    "ddim_scheduler",
    "published_parts",
    "random_parts",
    "render_windows",
]
