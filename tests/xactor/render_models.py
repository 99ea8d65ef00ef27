"""Build small renderers for tests."""

import torch

from xactor.faces.landmarks import MEAN_LANDMARKS
from xactor.render import Components, random_components


def small_components(**options) -> Components:
    """Return components for pictures of 32 px, with random weights."""
    sizes = {
        "image_size": 32,
        "channels": (16, 32),
        "vae_channels": (16, 32),
        "latent_channels": 8,
        "encoder_channels": (8, 16, 16),
        "encoder_size": 32,
        "guess_channels": (8, 16, 16),
    }
    return random_components(**{**sizes, **options}, motion_width=80, motion_tokens=4, latent_dim=32)


def without_zero_weights(components: Components) -> Components:
    """Replace the weights that start at zero by random ones, so that motion and time have an effect in a test."""
    torch.manual_seed(1)
    for parameter in [*components.unet.parameters(), *components.vae.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return components


def mean_landmarks(count: int) -> torch.Tensor:
    """Return the landmarks of an average face, float32 [count, K, 2]."""
    return torch.from_numpy(MEAN_LANDMARKS).expand(count, -1, -1)
