"""Pictures to the latents that the renderer denoises, and back: Stable Diffusion's VAE (Paper 3.1.1)."""

from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """[N, 3, S, S] in [-1, 1] to latents [N, C, h, w], scaled to about unit variance."""
    posterior: Any = cast(Any, vae.encode(cast(Any, pictures), return_dict=False))[0]
    return posterior.mode() * vae.config["scaling_factor"]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents [N, C, h, w] to pictures [N, 3, S, S] in about [-1, 1]."""
    scaled = (latents / vae.config["scaling_factor"]).to(vae.dtype)
    return cast(Any, vae.decode(cast(Any, scaled), return_dict=False))[0]


def reconstruction_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """What a VAE that is trained from nothing minimises, [N]: the pictures' error, and latents far from unit variance.

    Ours: the latents' mean and deviation are held at 0 and 1, so that no scaling factor has to be measured, and a
    little noise on them stands for the posterior's.
    """
    latents = encode(vae, pictures)
    error = decode(vae, latents + 0.05 * torch.randn_like(latents)) - pictures
    spread = ((latents.std(dim=(0, 2, 3)) - 1) ** 2).mean() + (latents.mean(dim=(0, 2, 3)) ** 2).mean()
    return error.abs().mean(dim=(1, 2, 3)) + 2 * (error**2).mean(dim=(1, 2, 3)) + 0.1 * spread
