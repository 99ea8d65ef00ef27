"""Guess frames by moving the portrait before the UNet runs. Ours, after the warping renderers FOMM and LIA.

The paper's UNet receives motion only through cross-attention. From random weights, such a UNet must learn to copy a
face before it can learn to move one. A UNet that also sees a guess need not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Largest side of the pictures from which a guess is made, in pixels.
_MAX_SIDE = 64
# Number of flow fields that are mixed, and bound of the share of each.
_FLOWS, _MAX_SHARE = 16, 3.0
# Width of the code that tells the layers what to do, and channels of the layers at full size.
_CODE, _FULL_SIZE_CHANNELS = 128, 12


class GuessNetwork(nn.Module):
    """Move a portrait by the change of its motion latent.

    A network of convolutions reads the portrait at half its size, at most 64 px, and is told the motion by a scale and
    shift of its channels (FiLM, Perez et al. 2018). For each place, it returns the place from which the colour comes, a
    new colour (the inside of a mouth, a closed lid), and how much the new colour covers. Two convolutions at full size
    sharpen the result. Everything is multiplied by amounts that are zero without a change, so that an unmoved portrait
    stays as it is, to the bit.

    Args:
        latent_dim: Width of z.
        channels: Channels of the three levels, each at half the side of the previous one.
    """

    def __init__(self, latent_dim: int, channels: tuple[int, ...]):
        super().__init__()
        if len(channels) != 3 or any(c < 8 or c % 8 for c in channels):
            raise ValueError(f"guess_channels must be 3 multiples of 8, got {tuple(channels)}")
        fine, middle, coarse = channels
        self.stem = _conv(5, fine)
        self.down = nn.ModuleList([_conv(fine, middle, stride=2), _conv(middle, coarse, stride=2)])
        self.read = nn.ModuleList([_conv(middle, middle), _conv(coarse, coarse)])
        self.code = nn.Sequential(nn.Linear(latent_dim, _CODE), nn.SiLU(), nn.Linear(_CODE, _CODE), nn.SiLU())
        self.blocks = nn.ModuleList([_ToldBlock(coarse, coarse), _ToldBlock(coarse, coarse)])
        self.up = nn.ModuleList([_ToldBlock(coarse + middle, middle), _ToldBlock(middle + fine, fine)])
        self.shares = nn.Linear(latent_dim, _FLOWS, bias=False)
        self.flows = _conv(fine, 2 * _FLOWS)
        self.cover = _conv(fine, 4)
        self.sharpen = nn.Sequential(_conv(7, _FULL_SIZE_CHANNELS), nn.SiLU(), _conv(_FULL_SIZE_CHANNELS, 3))
        # Latents have about unit variance, so the shares have too. Nothing moves at the start.
        nn.init.normal_(self.shares.weight, std=latent_dim**-0.5)
        for layer in (self.flows, self.cover, self.sharpen[-1]):
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        # The new colour starts with a share below 1 %.
        nn.init.constant_(self.cover.bias[:1], -5.0)  # pyright: ignore[reportOptionalSubscript]

    def forward(self, pictures: Tensor, change: Tensor, *, scale: int = 1) -> Tensor:
        """Return the moved pictures, [N, 3, S, S].

        Args:
            pictures: Portraits, [N, 3, S, S] in [-1, 1].
            change: Change of the motion latents since the portraits, [N, latent_dim].
            scale: How many times larger the portraits are than those that the network learned from. The network sees
                reduced portraits, but moves the full-size ones.
        """
        code = self.code(change)  # [N, code]
        shares = _MAX_SHARE * torch.tanh(self.shares(change) / _MAX_SHARE)  # [N, K]
        amount = shares.square().mean(1)
        amount = (amount / (1 + amount))[:, None, None, None]  # [N, 1, 1, 1], from 0 to 1
        features = self._features(pictures, code, pictures.shape[-1] // scale)  # [N, C, T, T]
        flows = self.flows(features).unflatten(1, (_FLOWS, 2))  # [N, K, 2, T, T]
        flow = (flows * shares[:, :, None, None, None]).sum(1)  # [N, 2, T, T]
        found = torch.cat([flow, self.cover(features)], dim=1)  # [N, 6, T, T]
        found = F.interpolate(found, pictures.shape[-2:], mode="bilinear", align_corners=False)
        flow, cover, colour = found.split([2, 1, 3], dim=1)
        moved = _move(pictures, flow)  # [N, 3, S, S]
        cover = amount * torch.sigmoid(cover)  # [N, 1, S, S]
        covered = moved + cover * (torch.tanh(colour) - moved)  # [N, 3, S, S]
        return covered + amount * self.sharpen(torch.cat([covered, moved, cover], dim=1))

    def _features(self, pictures: Tensor, code: Tensor, seen_px: int) -> Tensor:
        """Return features of the pictures under a motion, [N, C, T, T], as if their side were `seen_px`."""
        side = min(seen_px // 2, _MAX_SIDE)
        small = F.interpolate(pictures, (side, side), mode="area")
        line = torch.linspace(-1, 1, side, device=pictures.device, dtype=pictures.dtype)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(small), 2, side, side)
        fine = self.stem(torch.cat([small, places], dim=1))  # [N, C, T, T]
        levels = [fine]
        for down, read in zip(self.down, self.read, strict=True):
            x = down(F.silu(levels[-1]))
            levels.append(x + read(F.silu(x)))
        x = levels.pop()
        for block in self.blocks:
            x = block(x, code)
        for block in self.up:
            skip = levels.pop()
            x = F.interpolate(x, skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], dim=1), code)
        return F.silu(x)


class _ToldBlock(nn.Module):
    """Run a residual block whose channels a code scales and shifts."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.conv1, self.conv2 = _conv(width_in, width_out), _conv(width_out, width_out)
        self.norm = nn.GroupNorm(8, width_out)
        self.tell = nn.Linear(_CODE, 2 * width_out)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.tell(code)[:, :, None, None].chunk(2, dim=1)  # [N, C, 1, 1]
        h = self.norm(self.conv1(F.silu(x))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


def _move(pictures: Tensor, flow: Tensor) -> Tensor:
    """Take each colour from another place.

    Args:
        pictures: [N, 3, S, S].
        flow: Offsets (x, y) to the places that colours come from, in halves of the side, [N, 2, S, S].
    """
    # Compute the grid in float32: in bf16 it would be wrong by up to half a pixel.
    still = torch.eye(2, 3, device=pictures.device).expand(len(pictures), 2, 3)
    grid = F.affine_grid(still, list(pictures.shape), align_corners=False)  # [N, S, S, 2]
    grid = grid + flow.movedim(1, -1).float()
    moved = F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)
    return moved.to(pictures.dtype)


def _conv(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, stride, 1)
