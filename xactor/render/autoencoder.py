"""Stable Diffusion's VAE, which maps pictures to the latents that the renderer denoises and back (Paper 3.1.1)."""

import itertools
import math
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode pictures [N, 3, S, S] in [-1, 1] to latents [N, C, h, w], scaled to about unit variance."""
    posterior: Any = cast(Any, vae.encode(cast(Any, pictures), return_dict=False))[0]
    return posterior.mode() * vae.config["scaling_factor"]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents [N, C, h, w] to pictures [N, 3, S, S] in about [-1, 1]."""
    scaled = (latents / vae.config["scaling_factor"]).to(vae.dtype)
    return cast(Any, vae.decode(cast(Any, scaled), return_dict=False))[0]


def reconstruction_loss(vae: AutoencoderKL, pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return the loss of the decoder of a VAE from random weights for pictures [B, n, 3, S, S]: [B].

    Ours: a little noise on the latents, drawn for each sample, stands for the error that the renderer will leave.
    """
    with torch.no_grad():
        latents = encode(vae, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # [B, n, C, h, w]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators]).to(latents)
    error = decode(vae, (latents + 0.03 * noise).flatten(0, 1)).unflatten(0, pictures.shape[:2]) - pictures
    return error.abs().mean(dim=(1, 2, 3, 4)) + 4 * (error**2).mean(dim=(1, 2, 3, 4))


# Constants much larger than a signal of about 1, so that norms hardly change the signal's size. The decoder's is
# smaller, since the decoder is trained further.
_ENCODER_CONSTANT, _DECODER_CONSTANT = 30.0, 4.0


@torch.no_grad()
def start_as_cosines(vae: AutoencoderKL) -> None:
    """Write the transform of JPEG into a VAE: an orthonormal cosine transform of blocks in opponent colours.

    The encoder then needs no training: errors of latents equal errors of pictures, latents of still places stay still,
    and a block's mean has the largest variance. All of this makes latents easy to denoise. The decoder starts by giving
    each block its mean colour and learns the rest: nearest upsampling followed by convolutions cannot invert the
    transform exactly.

    Signals pass norms and activations linearly: each goes as the pair (a, -a) next to constants, and
    silu(a) - silu(-a) = a.

    Raises:
        ValueError: The VAE has too few channels.
    """
    encoder, decoder = cast(Any, vae.encoder), cast(Any, vae.decoder)
    widths, coefficients = list(vae.config["block_out_channels"]), int(vae.config["latent_channels"])
    block_px, halvings = 1 << (len(widths) - 1), len(widths) - 1
    need = [3 * 4 ** (i + 1) for i in range(halvings - 1)] + [coefficients, 4 * coefficients]
    need[0] = max(need[0], 12)
    too_narrow = any(w < n for w, n in zip(widths, need, strict=False))
    if halvings < 1 or coefficients > 3 * block_px**2 or too_narrow:
        raise ValueError(
            f"a VAE from random weights with {coefficients} latent channels needs blocks of at least {tuple(need)} "
            f"channels, got {tuple(widths)}"
        )
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            _carry(module)
        elif isinstance(module, ResnetBlock2D):
            _clear(module.conv2)
        elif isinstance(module, Attention):
            _clear(cast(Any, module.to_out)[0])
    basis = _cosines(block_px, coefficients)  # [L, 3, block, block]
    _write_encoder(encoder, basis, halvings)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _carry(cast(Any, conv))
    _write_decoder(decoder, basis)


def _write_encoder(encoder: Any, basis: Tensor, halvings: int) -> None:
    """Write the transform: strided convolutions collect a block's places as channels, the last one transforms them.

    Args:
        basis: The transform, [L, 3, block, block].
        halvings: Number of strided convolutions.
    """
    coefficients = len(basis)
    _carry(encoder.conv_in)
    for level, down_block in enumerate(encoder.down_blocks[:-1]):
        conv = down_block.downsamplers[0].conv
        _clear(conv)
        side, last = 1 << level, level == halvings - 1
        for y, x, c, v, u in itertools.product(range(2), range(2), range(3), range(side), range(side)):
            inside, at = (c * side + v) * side + u, (y * side + v, x * side + u)
            if last:
                conv.weight[:coefficients, inside, y, x] = basis[:, c, at[0], at[1]]
            else:
                conv.weight[(c * 2 * side + at[0]) * 2 * side + at[1], inside, y, x] = 1
    _pairs(
        encoder.down_blocks[-1].resnets[0].conv_shortcut,
        encoder.conv_norm_out,
        encoder.conv_out,
        coefficients,
        _ENCODER_CONSTANT,
    )
    # The posterior's log variance.
    encoder.conv_out.bias[coefficients:] = -12.0


def _write_decoder(decoder: Any, basis: Tensor) -> None:
    """Write a decoder that gives each block its mean colour and carries the coefficients along.

    Args:
        basis: The transform, [L, 3, block, block].
    """
    coefficients = len(basis)
    _clear(decoder.conv_in)
    # A block's mean colour.
    decoder.conv_in.weight[:3, :, 1, 1] = basis.mean(dim=(2, 3)).T  # [3, L]
    for i in range(coefficients):
        decoder.conv_in.weight[3 + i, i, 1, 1] = 1
    for up_block in decoder.up_blocks[:-1]:
        conv = up_block.upsamplers[0].conv
        _carry(conv)
        conv.weight += 0.002 * torch.randn_like(conv.weight)
    _pairs(
        decoder.up_blocks[-1].resnets[0].conv_shortcut,
        decoder.conv_norm_out,
        decoder.conv_out,
        3,
        _DECODER_CONSTANT,
    )


def _cosines(side: int, count: int) -> Tensor:
    """Return the lowest orthonormal cosines over a block's places times opponent colours, [count, 3, side, side]."""
    k = torch.arange(side)
    wave = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * side)) * math.sqrt(2 / side)
    wave[0] = math.sqrt(1 / side)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours /= colours.norm(dim=1, keepdim=True)
    every = torch.einsum("ay,bx,kc->kabcyx", wave, wave, colours).flatten(0, 2)  # [3 side^2, 3, side, side]
    # Colour varies less and more slowly than brightness.
    cost = (torch.tensor([0.0, 2.5, 2.5])[:, None, None] + k[:, None] + k).flatten()
    return every[cost.argsort(stable=True)[:count]]


def _pairs(shortcut: Any, norm: Any, out: Any, count: int, constant: float) -> None:
    """Pass the first `count` channels through norm, activation and output unchanged."""
    _clear(shortcut)
    _clear(out)
    for i in range(len(shortcut.weight) // 4):
        shortcut.bias[4 * i + 2], shortcut.bias[4 * i + 3] = constant, -constant
    for i in range(count):
        for channel, sign in ((4 * i, 1.0), (4 * i + 1, -1.0)):
            shortcut.weight[channel, i] = sign
            out.weight[i, channel, 1, 1] = sign
    norm.weight.fill_(constant / math.sqrt(2))


def _carry(conv: nn.Conv2d) -> None:
    """Make a convolution the identity."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(cast(nn.Parameter, conv.bias))


def _clear(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
