"""The renderer's UNet: SD1.5's with temporal layers, motion cross-attention and the reference in its self-attention."""

import math
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

_CELL = 4  # places that a motion token stands for, a side
_SAYS = 5  # numbers of each place: the way that it came, x and y, and the change of its colour
_THUMBNAIL = 2  # pixels of a thumbnail a place, a side
# Attention over few frames of many places, by preference: flash's tiles are many times as long as such a sequence.
_FOR_SHORT = [
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


class RendererUNet(UNetMotionModel):
    """Noised frames, motion latents and a reference to the scheduler's prediction (Paper 3.1.1).

    A motion latent becomes several tokens, since attention to a single one could not tell places apart (Ours: a
    linear map to `motion_tokens` of them, in a square grid over the face). The output projections of the motion
    cross-attention and of the temporal layers start at zero: step 0 is the loaded UNet with the reference in its
    self-attention.

    Beside the noised frames it sees a guess of them, the reference picture moved as `guess_motion` has it (Ours, after
    the warping renderers FOMM and LIA; the paper's hears motion by cross-attention alone). From random weights that
    saves it from learning to copy a face before it can learn to move one. What comes in this way starts at zero too.
    A UNet from nothing says what the guess lacks; see `predict`.

    Args:
        latent_dim: the width of z. motion_tokens: how many tokens a z becomes. cross_attention_dim: their width.
        locality: how much more a token hears what is near its place, in the frame, the reference and the grid of motion
            tokens: of the first head, as `Locality` has it; None is the published attention. Ours, after ALiBi's
            slopes: from random weights, without it, it takes thousands of steps until the reference is heard.
        guess_spread: how far latents are from the guess, RMS, where the UNet says what the guess lacks; None where it
            says all, as published weights do.
        The others as of diffusers' UNetMotionModel.
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
        if math.isqrt(motion_tokens) ** 2 != motion_tokens or cross_attention_dim < _SAYS * _CELL**2:
            raise ValueError(
                f"motion tokens must be a square number of at least {_SAYS * _CELL**2} wide, "
                f"got {motion_tokens} of {cross_attention_dim}"
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
        nn.init.normal_(self.motion_proj.bias)  # so that the norm leaves tokens their size
        self.motion_norm = nn.LayerNorm(cross_attention_dim)
        self.null_motion = nn.Parameter(torch.zeros(motion_tokens, cross_attention_dim))
        for name, block in spatial_blocks(self):
            if locality is not None:
                for attention in (block.attn1, block.attn2):
                    attention.locality = Locality(num_attention_heads, attention.query_dim, locality)
            block.attn1.set_processor(ReadReference(f"{name}.attn1"))
            block.attn2.set_processor(ReadMotion())
            _zero(block.attn2.to_out[0])
        for module in self.temporal_layers():
            module.__class__ = _TemporalLayer
            _zero(module.proj_out)
        for module in self.modules():
            if isinstance(module, GEGLU):
                module.__class__ = _Gate

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        noisy: Tensor,
        level: Tensor,
        z: Tensor,
        keep: Tensor,
        reference: ReferenceFeatures,
        guess: Tensor,
    ) -> Tensor:
        """The prediction for noised latents, [B, F, 4, h, w].

        Args:
            noisy: [B, F, 4, h, w]. level: the scheduler's timesteps [B].
            z: motion latents [B, F, latent_dim].
            keep: [B], 1 where the motion is heard and 0 where it is dropped, for classifier-free guidance.
            reference: of `ReferenceUNet.features`, [B, ...] each.
            guess: latents of the frames as `guess_motion` has them, [B, F, 4, h, w].
        """
        tokens = self.motion_proj(z.flatten(0, 1)).unflatten(-1, self.null_motion.shape)  # [B F, M, C]
        keep = keep.to(tokens.dtype).repeat_interleave(z.shape[1])[:, None, None]
        tokens = keep * self.motion_norm(tokens) + (1 - keep) * self.null_motion
        out = super().forward(
            torch.cat([noisy, guess], dim=2).transpose(1, 2),  # [B, 8, F, h, w]
            level,
            encoder_hidden_states=tokens,
            cross_attention_kwargs={"reference": reference},
            return_dict=False,
        )[0]
        return out.transpose(1, 2)

    def guess_motion(self, change: Tensor, pictures: Tensor) -> Tensor:
        """What a change of motion latents makes of pictures, by linear maps and a warp: [N, 3, T, T].

        Motion tokens lie in a square grid over the face, and the first numbers of each are for its 4 x 4 places: from
        where its colour comes, in an eighth of the picture's side, and by how much it changes, in a quarter of [-1, 1].
        So what z says has a place before the UNet hears it. The same way for the same motion whoever it is, as in FOMM
        and LIA: ways fit more faces than colours do.

        Args:
            change: of motion latents, [N, latent_dim]. pictures: [N, 3, T, T] in [-1, 1].
        """
        tokens = F.linear(change, self.motion_proj.weight).unflatten(-1, self.null_motion.shape)  # [N, M, C]
        side = math.isqrt(tokens.shape[1])
        places = (
            tokens[..., : _SAYS * _CELL**2].unflatten(-1, (_SAYS, _CELL, _CELL)).unflatten(1, (side, side))
        )
        places = (
            places.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3) / 4
        )  # [N, 5, side * 4, side * 4]
        places = F.interpolate(places, pictures.shape[-2:], mode="bilinear", align_corners=False)
        # Where a pixel is takes more than bf16 can tell: it would be up to half of one away.
        still = torch.eye(2, 3, device=change.device).expand(len(change), 2, 3)
        own = F.affine_grid(still, list(pictures.shape), align_corners=False)
        way = own + places[:, :2].movedim(1, -1).float() / 4
        moved = F.grid_sample(pictures.float(), way, padding_mode="border", align_corners=False)
        return moved.to(pictures.dtype) + places[:, 2:]

    def thumbnails(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, S, S] made so small that two pixels a side are a place of `guess_motion`."""
        return F.adaptive_avg_pool2d(pictures, _THUMBNAIL * _CELL * math.isqrt(self.null_motion.shape[0]))

    def to_json_string(self) -> str:
        return own_config(self)

    def temporal_layers(self) -> list[AnimateDiffTransformer3D]:
        return [module for module in self.modules() if isinstance(module, AnimateDiffTransformer3D)]


class _FramesAndGuess(nn.Conv2d):
    """The UNet's first convolution, under its published names, and one for the guess that is added to it."""

    def __init__(self, published: nn.Conv2d):
        channels, size, padding = published.in_channels, published.kernel_size[0], published.padding
        super().__init__(channels, published.out_channels, size, padding=padding)  # pyright: ignore[reportArgumentType]
        self.load_state_dict(published.state_dict())
        self.guess = nn.Conv2d(channels, published.out_channels, size, padding=padding, bias=False)  # pyright: ignore
        _zero(self.guess)

    def forward(self, input: Tensor) -> Tensor:
        frames, guess = input.chunk(2, dim=1)
        return super().forward(frames) + self.guess(guess)


class _TemporalLayer(AnimateDiffTransformer3D):
    """AnimateDiff's, which a single frame passes by: it has no time, and the first phase trains without them."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        timestep: Any = None,
        class_labels: Any = None,
        num_frames: int = 1,  # the middle block gives it by its place
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        if num_frames == 1:
            return hidden_states
        # The order is the process's: a thread beside this one may see it, which costs it time at most.
        ordered = sdpa_kernel(_FOR_SHORT, set_priority=True) if hidden_states.is_cuda else nullcontext()
        with ordered:
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                timestep,
                class_labels,
                num_frames,
                cross_attention_kwargs,
            )


class _Gate(GEGLU):
    """diffusers' by two products, so that what is multiplied lies in one piece: a GPU is slow over halves of rows.

    A projection that something was put into, such as an adapter, is called as it is.
    """

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        if type(self.proj) is not nn.Linear:
            return super().forward(hidden_states, *args, **kwargs)
        halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        value, gate = (F.linear(hidden_states, weight, bias) for weight, bias in halves)
        return value * F.gelu(gate)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
