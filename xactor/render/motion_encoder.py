"""Define the motion encoder E_mot, which encodes a face to a motion latent z (Paper 3.1).

z must describe the facial motion and not the person. Two things remove identity from z: z is narrow (a bottleneck), and
the faces that E_mot sees in training are augmented.
"""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from xactor.origin import digest_origin
from xactor.render.frames import to_model

# Sides of the grids to which the features of the last three blocks are pooled. A grid preserves where in the face a
# motion is.
_GRIDS = (8, 8, 4)


class MotionEncoder(ModelMixin, ConfigMixin):
    """Encode face crops to mean and log variance of the motion latent z.

    Paper 3.1: "multiscale facial motions into a compact 1D latent". The paper and X-NeMo leave the network open. Ours:
    strided residual blocks. The outputs of the last three blocks are pooled to grids of few channels, 8 x 8, 8 x 8 and
    4 x 4, and fused by a linear map.

    Args:
        image_size: Side in pixels to which pictures are resized before they are encoded.
        channels: Channels of each block; each block halves the side.
        latent_dim: Width of z.
        latent_origin: Origin of the latents that the encoder has learned to make; see `xactor.origin`. None: it was not
            recorded.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512),
        latent_dim: int = 512,
        latent_origin: str | None = None,
    ):
        super().__init__()
        if image_size >> len(channels) < _GRIDS[-1] or len(channels) < len(_GRIDS):
            raise ValueError(
                f"{len(channels)} blocks need an image_size of at least {_GRIDS[-1] << len(channels)}, and at least "
                f"{len(_GRIDS)} blocks are needed, got image_size {image_size}"
            )
        widths = (channels[0], *channels)
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.stages = nn.ModuleList(_DownBlock(a, b) for a, b in zip(widths, channels, strict=False))
        used = channels[-len(_GRIDS) :]
        # Channels of each grid, so that a grid has about as many numbers as z.
        kept = [max(latent_dim // grid**2, 1) for grid in _GRIDS]
        self.scales = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(used, kept, strict=True))
        features = sum(width * grid**2 for width, grid in zip(kept, _GRIDS, strict=True))
        self.fuse = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, 2 * latent_dim))
        # The mean of z starts small, so that the learned part soon outweighs the random start. The variance of z starts
        # small too (log variance -8): with variance 1 the renderer would learn to ignore z.
        head = cast(nn.Linear, self.fuse[-1])
        with torch.no_grad():
            head.weight[:latent_dim] *= 0.1
            head.bias[:latent_dim] *= 0.1
            head.bias[latent_dim:] = -8.0

    @property
    def latent_origin(self) -> str:
        """Return the recorded origin of the latents. If none was recorded, it is the encoder itself."""
        return self.config["latent_origin"] or self.own_origin()

    def own_origin(self) -> str:
        """Return the origin of the latents of an encoder that was not taught any others: a digest of its weights."""
        return digest_origin("motion-encoder", {}, self.state_dict())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames [N, 3, S, S] in [-1, 1] to mean and log variance of z, float32 [N, latent_dim] each."""
        size = self.config["image_size"]
        if frames.shape[-1] != size:
            # On CPUs this resize exists for float32 only.
            frames = F.interpolate(
                frames.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
            )
        x = self.stem(frames.to(self.stem.weight.dtype))  # [N, C, S, S]
        outputs = []
        for stage in self.stages:
            x = stage(x)  # [N, C, S', S']
            outputs.append(x)
        pooled = [
            F.adaptive_avg_pool2d(scale(x), grid).flatten(1)
            for scale, x, grid in zip(self.scales, outputs[-len(_GRIDS) :], _GRIDS, strict=True)
        ]  # [N, C grid^2] each
        mean, logvar = self.fuse(torch.cat(pooled, dim=1)).float().chunk(2, dim=1)  # [N, latent_dim]
        return mean, logvar.clamp(-12.0, 6.0)

    @torch.no_grad()
    def encode(self, frames: np.ndarray, *, batch: int = 64) -> Tensor:
        """Encode frames uint8 [T, S, S, 3] to z, the posterior's mean: float32 [T, latent_dim] on the CPU.

        Args:
            frames: Face crops.
            batch: Number of frames that are encoded together, which bounds the memory.

        Raises:
            ValueError: `frames` has another dtype or shape.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [T, S, S, 3], got {frames.dtype} {frames.shape}")
        means = [
            self(to_model(frames[i : i + batch], self.device, self.dtype))[0]
            for i in range(0, len(frames), batch)
        ]
        if not means:
            return torch.zeros(0, self.config["latent_dim"])
        return torch.cat(means).cpu()


class _DownBlock(nn.Module):
    """Halve the side by a strided convolution, then run a residual block."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.down = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(min(16, width_out // 4), width_out)
        self.norm2 = nn.GroupNorm(min(16, width_out // 4), width_out)
        self.conv1 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)  # [N, C, S / 2, S / 2]
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))
