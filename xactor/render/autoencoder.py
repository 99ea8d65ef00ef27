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
    """Encode pictures [N, 3, S, S] in [-1, 1] to latents [N, C, h, w], which are scaled to about unit variance."""
    posterior: Any = cast(Any, vae.encode(cast(Any, pictures), return_dict=False))[0]
    return posterior.mode() * vae.config["scaling_factor"]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents [N, C, h, w] to pictures [N, 3, S, S] in about [-1, 1]."""
    scaled = (latents / vae.config["scaling_factor"]).to(vae.dtype)
    return cast(Any, vae.decode(cast(Any, scaled), return_dict=False))[0]


def reconstruction_loss(vae: AutoencoderKL, pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return the loss for training the decoder of a VAE from random weights: [B].

    The loss is the mean absolute error of the decoded pictures plus 4 times their mean squared error. Ours: the decoder
    sees latents with a little noise, which stands for the error that the renderer will leave.

    Args:
        vae: The VAE. Its encoder is not trained.
        pictures: n pictures per sample, [B, n, 3, S, S] in [-1, 1].
        generators: Random generator of each sample.
    """
    with torch.no_grad():
        latents = encode(vae, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # [B, n, C, h, w]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators]).to(latents)
    decoded = decode(vae, (latents + 0.03 * noise).flatten(0, 1)).unflatten(0, pictures.shape[:2])
    # Means over a picture need float32.
    error = decoded.float() - pictures  # [B, n, 3, S, S]
    return error.abs().mean(dim=(1, 2, 3, 4)) + 4 * (error**2).mean(dim=(1, 2, 3, 4))


# Constants that `start_as_cosines` puts into channels next to the signal. They are much larger than the signal, which
# is about 1, so that norm layers hardly change the signal's size. The decoder's constant is smaller, because the
# decoder is trained further.
_ENCODER_CONSTANT, _DECODER_CONSTANT = 30.0, 4.0


@torch.no_grad()
def start_as_cosines(vae: AutoencoderKL) -> None:
    """Set a VAE's weights to the transform of JPEG: an orthonormal cosine transform of tiles in opponent colours.

    A tile is a square of a picture that becomes one place of the latents. Opponent colours are brightness and two
    colour differences.

    The encoder then needs no training, and its latents are easy to denoise: an error of latents equals the error of
    pictures, tiles that do not change keep their latents, and a tile's mean has the largest variance. The decoder at
    first gives each tile its mean colour. It must learn the rest, because nearest upsampling followed by convolutions
    cannot invert the transform exactly.

    Activations and norm layers must pass a signal a on unchanged. For the activations, the signal is stored in two
    channels as (a, -a), because silu(a) - silu(-a) = a. For the norm layers, there are large constants in the channels
    next to the signal, which fix the scale that a norm divides by.

    Raises:
        ValueError: The VAE has too few channels.
    """
    encoder, decoder = cast(Any, vae.encoder), cast(Any, vae.decoder)
    widths, coefficients = list(vae.config["block_out_channels"]), int(vae.config["latent_channels"])
    tile_px, halvings = 1 << (len(widths) - 1), len(widths) - 1
    # Number of channels that each block of the encoder network needs. A block that halves the side turns 2 x 2 places
    # of a channel into 4 channels, starting from 3 colours. The last two blocks hold the coefficients of the transform.
    # `_pass_as_pairs` needs 4 channels per signal. Its signals are the coefficients in the encoder's last block, and 3
    # colours in the decoder's last block, which is as wide as the encoder's first block.
    need = [3 * 4 ** (i + 1) for i in range(halvings - 1)] + [coefficients, 4 * coefficients]
    need[0] = max(need[0], 12)
    too_narrow = any(w < n for w, n in zip(widths, need, strict=False))
    if halvings < 1 or coefficients > 3 * tile_px**2 or too_narrow:
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
    basis = _cosines(tile_px, coefficients)  # [L, 3, tile, tile]
    _write_encoder(encoder, basis, halvings)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _set_identity(cast(Any, conv))
    _write_decoder(decoder, basis)


def _write_encoder(encoder: Any, basis: Tensor, halvings: int) -> None:
    """Write the transform into the encoder's weights.

    Strided convolutions collect the pixels of a tile as channels. The last of these convolutions also transforms them.

    Args:
        basis: The transform to L coefficients, [L, 3, tile, tile].
        halvings: Number of strided convolutions.
    """
    coefficients = len(basis)
    _set_identity(encoder.conv_in)
    for level, down_block in enumerate(encoder.down_blocks[:-1]):
        conv = down_block.downsamplers[0].conv
        _set_zero(conv)
        side, last = 1 << level, level == halvings - 1
        # At each place, the input channels hold side x side pixels (v, u) of each colour c. The kernel sees 2 x 2 such
        # places (y, x).
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
    # The remaining outputs are the posterior's log variance. The posterior gets almost no noise.
    encoder.conv_out.bias[coefficients:] = -12.0


def _write_decoder(decoder: Any, basis: Tensor) -> None:
    """Set the decoder's weights so that it gives each tile its mean colour.

    Further channels pass the coefficients on, so that the decoder can learn to use them.

    Args:
        basis: The transform to L coefficients, [L, 3, tile, tile].
    """
    coefficients = len(basis)
    _set_zero(decoder.conv_in)
    # The first 3 channels are a tile's mean colour.
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
    """Return the basis of the cosine transform of a tile, orthonormal pictures: [count, 3, side, side].

    Each is the product of a cosine along y, a cosine along x and an opponent colour.
    """
    k = torch.arange(side)
    wave = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * side)) * math.sqrt(2 / side)
    wave[0] = math.sqrt(1 / side)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours /= colours.norm(dim=1, keepdim=True)
    basis = torch.einsum("ay,bx,kc->kabcyx", wave, wave, colours).flatten(0, 2)  # [3 side^2, 3, side, side]
    # Low frequencies come first. Colour varies less and more slowly than brightness, so a cosine in a colour difference
    # ranks like a cosine in brightness whose frequency is higher by 2.5.
    rank = (torch.tensor([0.0, 2.5, 2.5])[:, None, None] + k[:, None] + k).flatten()
    return basis[rank.argsort(stable=True)[:count]]


def _pass_as_pairs(shortcut: Any, norm: Any, out: Any, count: int, constant: float) -> None:
    """Set weights so that the first `count` channels pass through shortcut, norm, activation and output unchanged.

    The shortcut maps channel i to the channels 4 i and 4 i + 1, with opposite signs. Channels 4 i + 2 and 4 i + 3 hold
    the constant, with opposite signs.
    """
    _set_zero(shortcut)
    _set_zero(out)
    for i in range(len(shortcut.weight) // 4):
        shortcut.bias[4 * i + 2], shortcut.bias[4 * i + 3] = constant, -constant
    for i in range(count):
        for channel, sign in ((4 * i, 1.0), (4 * i + 1, -1.0)):
            shortcut.weight[channel, i] = sign
            out.weight[i, channel, 1, 1] = sign
    # Half of the channels are +-constant and the others small, so the norm divides by about constant / sqrt(2).
    norm.weight.fill_(constant / math.sqrt(2))


def _set_identity(conv: nn.Conv2d) -> None:
    """Set a convolution's weights so that it returns its input."""
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(cast(nn.Parameter, conv.bias))


def _set_zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
