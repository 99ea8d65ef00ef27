"""The renderer's UNet is SD1.5's with temporal layers, motion cross-attention and reference self-attention."""

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
from xactor.render.guess import TOKEN_NUMBERS, thumbnails, warp

# Preferred order for attention over few frames of many places: flash's tiles are many times longer than such sequences.
_FOR_SHORT = [
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


class RendererUNet(UNetMotionModel):
    """Predict the scheduler's target from noised frames, motion latents and a reference (Paper 3.1.1).

    A motion latent becomes several tokens, since attention to a single one could not tell places apart (Ours: a
    linear map to `motion_tokens` of them, in a square grid over the face). The output projections of the motion
    cross-attention and of the temporal layers start at zero: step 0 is the loaded UNet with the reference in its
    self-attention.

    Next to the noised frames the UNet sees a guess of them, the reference picture moved by `guess_motion` (Ours). The
    weights of that input start at zero too. A UNet from random weights outputs what the guess lacks; see `predict`.

    Args:
        latent_dim: Width of z.
        motion_tokens: Number of tokens that a z becomes, a square number.
        cross_attention_dim: Width of the motion tokens.
        locality: Strength of `Locality` for the first head, in the frame, the reference and the grid of motion tokens;
            None is the published attention. Ours, after ALiBi's slopes: without it, training from random weights takes
            thousands of steps until the UNet uses the reference.
        guess_spread: RMS distance of latents from the guess, where the UNet outputs what the guess lacks; None where
            it outputs the whole prediction, as published weights do.

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
        guess_spread: float | None = None,
    ):
        if math.isqrt(motion_tokens) ** 2 != motion_tokens or cross_attention_dim < TOKEN_NUMBERS:
            raise ValueError(
                f"motion_tokens must be a square number and cross_attention_dim >= {TOKEN_NUMBERS}, "
                f"got {motion_tokens} and {cross_attention_dim}"
            )
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
        self.conv_in = _FramesAndGuess(self.conv_in)
        self.motion_proj = nn.Linear(latent_dim, motion_tokens * cross_attention_dim)
        # A bias of unit variance lets the norm keep the tokens' size.
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
        guess: Tensor,
    ) -> Tensor:
        """Return the prediction for noised latents, [B, F, 4, h, w].

        Args:
            noisy: Noised latents [B, F, 4, h, w].
            level: The scheduler's timesteps [B].
            z: Motion latents [B, F, latent_dim].
            keep: 1 where the motion is used and 0 where it is dropped, for classifier-free guidance, [B].
            reference: Features from `ReferenceUNet.features`, [B, ...] each.
            guess: Latents of the frames that `guess_motion` gives, [B, F, 4, h, w].
        """
        tokens = self.motion_proj(z.flatten(0, 1)).unflatten(-1, self.null_motion.shape)  # [B F, M, C]
        keep = keep.to(tokens.dtype).repeat_interleave(z.shape[1])[:, None, None]  # [B F, 1, 1]
        tokens = keep * self.motion_norm(tokens) + (1 - keep) * self.null_motion  # [B F, M, C]
        out = super().forward(
            torch.cat([noisy, guess], dim=2).transpose(1, 2),  # [B, 8, F, h, w]
            level,
            encoder_hidden_states=tokens,
            cross_attention_kwargs={"reference": reference},
            return_dict=False,
        )[0]  # [B, 4, F, h, w]
        return out.transpose(1, 2)  # [B, F, 4, h, w]

    def guess_motion(self, change: Tensor, pictures: Tensor) -> Tensor:
        """Guess what a change of motion latents makes of pictures; see `xactor.render.guess`.

        Args:
            change: Change of the motion latents since the pictures, [N, latent_dim].
            pictures: [N, 3, T, T] in [-1, 1].

        Returns:
            [N, 3, T, T].
        """
        tokens = F.linear(change, self.motion_proj.weight).unflatten(-1, self.null_motion.shape)  # [N, M, C]
        return warp(tokens, pictures)

    def thumbnails(self, pictures: Tensor) -> Tensor:
        """Reduce pictures [N, 3, S, S] so that two pixels along a side are one place of `guess_motion`."""
        return thumbnails(pictures, len(self.null_motion))

    def to_json_string(self) -> str:
        return own_config(self)

    def temporal_layers(self) -> list["TemporalLayer"]:
        """Return the layers over time."""
        return [module for module in self.modules() if isinstance(module, TemporalLayer)]


class _FramesAndGuess(nn.Conv2d):
    """Add to the UNet's first convolution, which keeps its published names, one over the guess."""

    def __init__(self, published: nn.Conv2d):
        channels, size, padding = published.in_channels, published.kernel_size[0], published.padding
        super().__init__(channels, published.out_channels, size, padding=padding)  # pyright: ignore[reportArgumentType]
        self.load_state_dict(published.state_dict())
        self.guess = nn.Conv2d(channels, published.out_channels, size, padding=padding, bias=False)  # pyright: ignore
        _zero(self.guess)

    def forward(self, input: Tensor) -> Tensor:
        frames, guess = input.chunk(2, dim=1)  # [B F, 4, h, w] each
        return super().forward(frames) + self.guess(guess)


class TemporalLayer(nn.Module):
    """Run AnimateDiff's layer over time, and let a single frame pass unchanged.

    A single frame has no time, and the first phases train without these layers. The submodules are those of the
    published layer, under its names.
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
        """Add attention over time to [B F, C, h, w].

        The signature is diffusers', whose middle block passes all arguments by position. The conditions are unused.
        """
        if num_frames == 1:
            return hidden_states
        x = hidden_states.unflatten(0, (-1, num_frames))  # [B, F, C, h, w]
        batch, frames, channels, height, width = x.shape
        x = self.norm(x.permute(0, 2, 1, 3, 4))  # [B, C, F, h, w]
        x = x.permute(0, 3, 4, 2, 1).reshape(batch * height * width, frames, channels)  # [B h w, F, C]
        x = self.proj_in(x)  # [B h w, F, C']
        # The preference is the whole process's: another thread may run by it meanwhile, which is at most slower.
        preferred = sdpa_kernel(_FOR_SHORT, set_priority=True) if x.is_cuda else nullcontext()
        with preferred:
            for block in self.transformer_blocks:
                x = block(x)
        x = self.proj_out(x)  # [B h w, F, C]
        x = (
            x.reshape(batch, height, width, frames, channels).permute(0, 3, 4, 1, 2).contiguous()
        )  # [B, F, C, h, w]
        return x.flatten(0, 1) + hidden_states  # [B F, C, h, w]


class _SplitGEGLU(nn.Module):
    """Run diffusers' GEGLU by two products, so that both factors are contiguous: a GPU is slow over halves of rows.

    A projection that is not a plain linear layer, such as one with an adapter, is called as it is.
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
    """Replace each published layer by ours, which takes over its submodules, so that weights keep their names."""
    for name, module in list(model.named_modules()):
        if isinstance(module, published):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, ours(module))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
