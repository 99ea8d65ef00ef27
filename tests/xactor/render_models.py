"""Build small renderers for tests."""

import torch

from xactor.render import Components, random_components


def small_components(**options) -> Components:
    """Return components of 32 px from random weights."""
    sizes = {
        "image_size": 32,
        "channels": (16, 32),
        "vae_channels": (16, 32),
        "latent_channels": 8,
        "encoder_channels": (8, 16, 16),
    }
    return random_components(**{**sizes, **options}, motion_width=80, motion_tokens=4, latent_dim=32)


def awake(components: Components) -> Components:
    """Make random what starts at zero, so that motion and time have an effect in a test."""
    torch.manual_seed(1)
    for parameter in [*components.unet.parameters(), *components.vae.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return components
