"""Define the renderer's UNet: that of Stable Diffusion 1.5 (SD1.5) with three additions.

Temporal layers attend over the frames of a window. A cross-attention to motion tokens replaces that to text. The
self-attention also sees the reference, the features of the portrait.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.activations import GEGLU
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from xactor.render.attention import (
    Locality,
    ReadMotion,
    ReadReference,
    ReferenceFeatures,
    own_config,
    spatial_blocks,
)
from xactor.render.guess import GuessNetwork

# Backends in order of preference for attention over the few frames of a window, at many places. FlashAttention comes
# second, because its tiles are many times longer than such sequences.
_BACKENDS_FOR_SHORT = [
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


class RendererUNet(UNetMotionModel):
    """Predict the scheduler's target from noised frames, motion latents and a reference (Paper 3.1.1).

    The motion latent z of a frame becomes several tokens, because attention to a single token could not tell places
    apart. Ours: a linear map makes `motion_tokens` tokens, in a square grid over the face. The output projections of
    the motion cross-attention and of the temporal layers start at zero, so that they add nothing at first. So training
    starts from the loaded UNet, whose self-attention also sees the reference.

    Ours: the UNet can also see a guess of the frames: the portrait, moved by `guess_network`. The weights of that input
    start at zero too. With `guess_spread`, the UNet outputs only a correction of the guess; see
    `xactor.render.prediction.predict`.

    Args:
        latent_dim: Width of z.
        motion_tokens: Number of tokens into which z is mapped, a square number.
        cross_attention_dim: Width of the motion tokens.
        locality: Initial strength of `Locality` in the first head; each further head starts at an eighth of the
            previous one. Locality weakens attention to places that are far away. It applies to the frame, the
            reference and the grid of motion tokens. None means attention without it, as in published weights. Ours,
            after ALiBi's slopes: without it, training from random weights takes thousands of steps until the UNet uses
            the reference.
        guess_channels: Channels of the guess network's three levels. None means that the UNet sees no guess: published
            weights were trained without a guess.
        guess_spread: RMS difference between the latents of a frame and of its guess, if the UNet outputs a correction
            of the guess. None means that the UNet outputs the whole prediction, as with published weights.
        guess_scale: How many times larger than the UNet's pictures the portrait and the frames are. The guess network
            moves the large portrait, and the UNet's correction is enlarged. More than 1 needs `guess_spread`.
        latent_origin: Origin of the latents z that the UNet was trained with; see `xactor.origin`. None: it was not
            recorded.

    The other arguments are those of diffusers' UNetMotionModel.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "DownBlockMotion",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlockMotion",
            "CrossAttnUpBlockMotion",
            "CrossAttnUpBlockMotion",
            "CrossAttnUpBlockMotion",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 768,
        num_attention_heads: int = 8,
        motion_max_seq_length: int = 32,
        motion_num_attention_heads: int = 8,
        use_motion_mid_block: bool = True,
        latent_dim: int = 512,
        motion_tokens: int = 16,
        locality: float | None = None,
        guess_channels: tuple[int, ...] | None = None,
        guess_spread: float | None = None,
        guess_scale: int = 1,
        latent_origin: str | None = None,
    ):
        if math.isqrt(motion_tokens) ** 2 != motion_tokens:
            raise ValueError(f"motion_tokens must be a square number, got {motion_tokens}")
        if guess_spread is not None and not guess_channels:
            raise ValueError(f"guess_spread must be None for a UNet without a guess, got {guess_spread}")
        if guess_scale < 1 or (guess_scale > 1 and guess_spread is None):
            raise ValueError(f"guess_scale must be >= 1, and 1 without guess_spread, got {guess_scale}")
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            num_attention_heads=num_attention_heads,
            motion_max_seq_length=motion_max_seq_length,
            motion_num_attention_heads=motion_num_attention_heads,
            use_motion_mid_block=use_motion_mid_block,
        )
        self.guess_network = GuessNetwork(latent_dim, guess_channels) if guess_channels else None
        if guess_channels:
            self.conv_in = _FramesAndGuess(self.conv_in)
        self.motion_proj = nn.Linear(latent_dim, motion_tokens * cross_attention_dim)
        # The bias has unit variance, because without a bias the norm would scale up the tokens of a small z.
        nn.init.normal_(self.motion_proj.bias)
        self.motion_norm = nn.LayerNorm(cross_attention_dim)
        self.null_motion = nn.Parameter(torch.zeros(motion_tokens, cross_attention_dim))
        for name, block in spatial_blocks(self):
            if locality is not None:
                for attention in (block.attn1, block.attn2):
                    attention.locality = Locality(num_attention_heads, attention.query_dim, locality)
            block.attn1.set_processor(ReadReference(f"{name}.attn1"))
            block.attn2.set_processor(ReadMotion())
            _zero(block.attn2.to_out[0])
        _replace(self, AnimateDiffTransformer3D, TemporalLayer)
        _replace(self, GEGLU, _SplitGEGLU)
        for layer in self.temporal_layers():
            _zero(layer.proj_out)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        noisy: Tensor,
        level: Tensor,
        z: Tensor,
        keep: Tensor,
        reference: ReferenceFeatures,
        guess: Tensor | None,
    ) -> Tensor:
        """Return the network's output for noised latents, [B, F, C, h, w].

        Latents of any dtype are converted to that of the weights.

        Args:
            noisy: Noised latents [B, F, C, h, w].
            level: The noise level of each window, as the scheduler's timestep, [B].
            z: Motion latents [B, F, latent_dim].
            keep: 1 if the motion is used, 0 if it is dropped for classifier-free guidance, [B]. A learned embedding
                replaces dropped motion.
            reference: Features from `ReferenceUNet.features`, [B, ...] each.
            guess: Latents of the guessed frames, [B, F, C, h, w]; None for a UNet without a guess.
        """
        # M motion tokens of width E for each frame.
        dtype = self.motion_proj.weight.dtype
        tokens = self.motion_proj(z.to(dtype).flatten(0, 1)).unflatten(
            -1, self.null_motion.shape
        )  # [B F, M, E]
        keep = keep.to(tokens.dtype).repeat_interleave(z.shape[1])[:, None, None]  # [B F, 1, 1]
        tokens = keep * self.motion_norm(tokens) + (1 - keep) * self.null_motion  # [B F, M, E]
        inputs = noisy if guess is None else torch.cat([noisy, guess], dim=2)  # [B, F, C or 2 C, h, w]
        out = super().forward(
            inputs.to(dtype).transpose(1, 2),  # [B, C or 2 C, F, h, w]
            level,
            encoder_hidden_states=tokens,
            cross_attention_kwargs={"reference": reference},
            return_dict=False,
        )[0]  # [B, C, F, h, w]
        return out.transpose(1, 2)  # [B, F, C, h, w]

    def to_json_string(self) -> str:
        return own_config(self)

    def temporal_layers(self) -> list["TemporalLayer"]:
        """Return the temporal layers, which attend over the frames of a window."""
        return [module for module in self.modules() if isinstance(module, TemporalLayer)]


class _FramesAndGuess(nn.Conv2d):
    """Run the UNet's first convolution over the frames, and add a second convolution over the guess.

    The weights of the first convolution keep their published names.
    """

    def __init__(self, published: nn.Conv2d):
        channels, size, padding = published.in_channels, published.kernel_size[0], published.padding
        super().__init__(channels, published.out_channels, size, padding=padding)  # pyright: ignore[reportArgumentType]
        self.load_state_dict(published.state_dict())
        self.guess = nn.Conv2d(channels, published.out_channels, size, padding=padding, bias=False)  # pyright: ignore
        _zero(self.guess)

    def forward(self, input: Tensor) -> Tensor:
        frames, guess = input.chunk(2, dim=1)  # [B F, C, h, w] each
        return super().forward(frames) + self.guess(guess)


class TemporalLayer(nn.Module):
    """Run a temporal layer of AnimateDiff over the frames of a window, and let a single frame pass unchanged.

    Attention over time does nothing useful for a single frame, and the first phases of training run without these
    layers. The submodules are those of the published layer and keep their names, so that published weights fit.
    """

    def __init__(self, published: AnimateDiffTransformer3D):
        super().__init__()
        self.norm, self.proj_in = published.norm, published.proj_in
        self.transformer_blocks, self.proj_out = published.transformer_blocks, published.proj_out

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        timestep: Any = None,
        class_labels: Any = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return the features [B F, C, h, w] plus the output of attention over time.

        The signature is that of the layer in diffusers, because the UNet's middle block passes all arguments by
        position. Only `hidden_states` and `num_frames` are used.
        """
        if num_frames == 1:
            return hidden_states
        x = hidden_states.unflatten(0, (-1, num_frames))  # [B, F, C, h, w]
        batch, frames, channels, height, width = x.shape
        x = self.norm(x.permute(0, 2, 1, 3, 4))  # [B, C, F, h, w]
        x = x.permute(0, 3, 4, 2, 1).reshape(batch * height * width, frames, channels)  # [B h w, F, C]
        x = self.proj_in(x)  # [B h w, F, C']
        # The preference applies to the whole process. It may also apply to another thread that runs meanwhile, which
        # can only make that thread slower.
        preferred = sdpa_kernel(_BACKENDS_FOR_SHORT, set_priority=True) if x.is_cuda else nullcontext()
        with preferred:
            for block in self.transformer_blocks:
                x = block(x)
        x = self.proj_out(x)  # [B h w, F, C]
        x = (
            x.reshape(batch, height, width, frames, channels).permute(0, 3, 4, 1, 2).contiguous()
        )  # [B, F, C, h, w]
        return x.flatten(0, 1) + hidden_states  # [B F, C, h, w]


class _SplitGEGLU(nn.Module):
    """Run diffusers' GEGLU activation with two matrix products instead of one.

    So value and gate are contiguous in memory: a GPU is slow on the halves of the rows of one product. If the
    projection is not a plain linear layer, but a layer with an adapter for example, it is called as one product.
    """

    def __init__(self, published: GEGLU):
        super().__init__()
        self.proj = published.proj

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(self.proj) is nn.Linear:
            halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
            value, gate = (F.linear(hidden_states, weight, bias) for weight, bias in halves)
        else:
            value, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return value * F.gelu(gate)


def _replace(model: nn.Module, published: type[nn.Module], ours: Callable[[Any], nn.Module]) -> None:
    """Replace each layer of the class `published` by the result of `ours`.

    `ours` must take over the layer's submodules, so that weights keep their names.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, published):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ours(module))


def _zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
