"""Small renderers for tests."""

import torch

from xactor.render import Parts, random_parts


def small_parts(**options) -> Parts:
    sizes = {
        "image_size": 32,
        "channels": (16, 32),
        "vae_channels": (16, 32),
        "latent_channels": 8,
        "encoder_channels": (8, 16, 16),
    }
    return random_parts(**{**sizes, **options}, motion_width=80, motion_tokens=4, latent_dim=32)


def awake(parts: Parts) -> Parts:
    """With what starts at zero made random: a test must see the motion and the time."""
    torch.manual_seed(1)
    for parameter in [*parts.unet.parameters(), *parts.vae.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return parts
