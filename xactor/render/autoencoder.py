"""Use Stable Diffusion's VAE, which maps pictures to the latents that the renderer denoises, and back (Paper 3.1.1)."""

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
    """Return the decoder's loss for pictures [B, n, 3, S, S], when a VAE is trained from random weights: [B].

    Ours: a little noise on the latents, drawn for each sample, stands for the error that the renderer will leave.
    """
    with torch.no_grad():
        latents = encode(vae, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # [B, n, C, h, w]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators]).to(latents)
    error = decode(vae, (latents + 0.03 * noise).flatten(0, 1)).unflatten(0, pictures.shape[:2]) - pictures
    return error.abs().mean(dim=(1, 2, 3, 4)) + 4 * (error**2).mean(dim=(1, 2, 3, 4))


# Constants much larger than a signal of about 1, so that norms hardly change the signal's size. The decoder's constant
# is smaller, because the decoder is trained further.
_ENCODER_CONSTANT, _DECODER_CONSTANT = 30.0, 4.0


@torch.no_grad()
def start_as_cosines(vae: AutoencoderKL) -> None:
    """Set a VAE's weights to the transform of JPEG: an orthonormal cosine transform of blocks in opponent colours.

    The encoder then needs no training, and its latents are easy to denoise: an error of latents equals the error of
    pictures, latents of still places stay still, and a block's mean has the largest variance. The decoder starts by
    giving each block its mean colour, and learns the rest: nearest upsampling followed by convolutions cannot invert
    the transform exactly.

    Activations and norms must not change a signal a. For the activations it is stored as the pair (a, -a), because
    silu(a) - silu(-a) = a. For the norms there are large constants next to it, which fix the norms' scale.

    Raises:
        ValueError: The VAE has too few channels.
    """
    encoder, decoder = cast(Any, vae.encoder), cast(Any, vae.decoder)
    widths, coefficients = list(vae.config["block_out_channels"]), int(vae.config["latent_channels"])
    block_px, halvings = 1 << (len(widths) - 1), len(widths) - 1
    # Channels that each block needs. A block collects the 4 places of each of its channels, starting from 3 colours,
    # and the last two blocks hold the coefficients. `_pass_as_pairs` needs 4 channels per signal: for the coefficients
    # in the encoder's last block, and for 3 colours in the decoder's last block, which has the width of the first.
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
            _set_identity(module)
        elif isinstance(module, ResnetBlock2D):
            _set_zero(module.conv2)
        elif isinstance(module, Attention):
            _set_zero(cast(Any, module.to_out)[0])
    basis = _cosines(block_px, coefficients)  # [L, 3, block, block]
    _write_encoder(encoder, basis, halvings)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _set_identity(cast(Any, conv))
    _write_decoder(decoder, basis)


def _write_encoder(encoder: Any, basis: Tensor, halvings: int) -> None:
    """Write the encoder's transform.

    Strided convolutions collect a block's places as channels. The last convolution transforms them.

    Args:
        basis: The transform, [L, 3, block, block].
        halvings: Number of strided convolutions.
    """
    coefficients = len(basis)
    _set_identity(encoder.conv_in)
    for level, down_block in enumerate(encoder.down_blocks[:-1]):
        conv = down_block.downsamplers[0].conv
        _set_zero(conv)
        side, last = 1 << level, level == halvings - 1
        # The kernel's place (y, x) holds a block of side x side places (v, u), for each colour c.
        for y, x, c, v, u in itertools.product(range(2), range(2), range(3), range(side), range(side)):
            channel_in = (c * side + v) * side + u
            row, column = y * side + v, x * side + u
            if last:
                conv.weight[:coefficients, channel_in, y, x] = basis[:, c, row, column]
            else:
                channel_out = (c * 2 * side + row) * 2 * side + column
                conv.weight[channel_out, channel_in, y, x] = 1
    _pass_as_pairs(
        encoder.down_blocks[-1].resnets[0].conv_shortcut,
        encoder.conv_norm_out,
        encoder.conv_out,
        coefficients,
        _ENCODER_CONSTANT,
    )
    # The posterior's log variance: almost no noise.
    encoder.conv_out.bias[coefficients:] = -12.0


def _write_decoder(decoder: Any, basis: Tensor) -> None:
    """Write a decoder that gives each block its mean colour and carries the coefficients along.

    Args:
        basis: The transform, [L, 3, block, block].
    """
    coefficients = len(basis)
    _set_zero(decoder.conv_in)
    # A block's mean colour.
    decoder.conv_in.weight[:3, :, 1, 1] = basis.mean(dim=(2, 3)).T  # [3, L]
    for i in range(coefficients):
        decoder.conv_in.weight[3 + i, i, 1, 1] = 1
    for up_block in decoder.up_blocks[:-1]:
        conv = up_block.upsamplers[0].conv
        _set_identity(conv)
        conv.weight += 0.002 * torch.randn_like(conv.weight)
    _pass_as_pairs(
        decoder.up_blocks[-1].resnets[0].conv_shortcut,
        decoder.conv_norm_out,
        decoder.conv_out,
        3,
        _DECODER_CONSTANT,
    )


def _cosines(side: int, count: int) -> Tensor:
    """Return the first products of a block's orthonormal cosines and opponent colours: [count, 3, side, side]."""
    k = torch.arange(side)
    wave = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * side)) * math.sqrt(2 / side)
    wave[0] = math.sqrt(1 / side)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours /= colours.norm(dim=1, keepdim=True)
    basis = torch.einsum("ay,bx,kc->kabcyx", wave, wave, colours).flatten(0, 2)  # [3 side^2, 3, side, side]
    # Low frequencies come first. Colour varies less and more slowly than brightness, so its cosines come later.
    rank = (torch.tensor([0.0, 2.5, 2.5])[:, None, None] + k[:, None] + k).flatten()
    return basis[rank.argsort(stable=True)[:count]]


def _pass_as_pairs(shortcut: Any, norm: Any, out: Any, count: int, constant: float) -> None:
    """Make the first `count` channels pass the shortcut, norm, activation and output unchanged.

    Channel i becomes the channels 4 i and 4 i + 1, with opposite signs. Channels 4 i + 2 and 4 i + 3 hold constants.
    """
    _set_zero(shortcut)
    _set_zero(out)
    for i in range(len(shortcut.weight) // 4):
        shortcut.bias[4 * i + 2], shortcut.bias[4 * i + 3] = constant, -constant
    for i in range(count):
        for channel, sign in ((4 * i, 1.0), (4 * i + 1, -1.0)):
            shortcut.weight[channel, i] = sign
            out.weight[i, channel, 1, 1] = sign
    norm.weight.fill_(constant / math.sqrt(2))


def _set_identity(conv: nn.Conv2d) -> None:
    """Make a convolution the identity."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(cast(nn.Parameter, conv.bias))


def _set_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
