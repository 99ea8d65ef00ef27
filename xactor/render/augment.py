"""What keeps identity out of z: the encoder's frame and the renderer's differ in all that is not motion (Paper 3.1).

X-NeMo varies colour, scale, crop and warp between the driving frame and the target. So a colour or a face's shape that
is seen in the driving frame says nothing about the target, and only motion is worth its place in z.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_KNOTS = 5  # of the smooth warp, a side


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far pictures are changed.

    colour: of gain and bias a channel, and of gamma. scale: of width and height, each by itself. shift, warp: in
    parts of the picture's side.
    """

    colour: float = 0.25
    scale: float = 0.1
    shift: float = 0.03
    warp: float = 0.03


# Of the reference and the target together, as if it were another person: all alike, so nothing tells them apart.
PERSON = AugmentConfig(colour=0.3, scale=0.12, shift=0.05, warp=0.035)
# Of the driving frame on top.
DRIVING = AugmentConfig(colour=0.4, scale=0.04, shift=0.01, warp=0.02)


@dataclass(frozen=True)
class Augmentation:
    """One change of a picture: gain and bias [3], gamma [1], and where each place comes from, [2, knots, knots]."""

    gain: Tensor
    bias: Tensor
    gamma: Tensor
    offsets: Tensor

    @classmethod
    def draw(cls, config: AugmentConfig, generator: torch.Generator) -> "Augmentation":
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator) * 2 - 1

        line = torch.linspace(-1, 1, _KNOTS)
        place = torch.stack([line.expand(_KNOTS, _KNOTS), line[:, None].expand(_KNOTS, _KNOTS)])  # x, y
        scale, shift = config.scale * uniform(2, 1, 1), 2 * config.shift * uniform(2, 1, 1)
        return cls(
            gain=1 + config.colour * uniform(3),
            bias=config.colour * uniform(3),
            gamma=torch.exp(config.colour * uniform(1)),
            offsets=place * scale + shift + 2 * config.warp * uniform(2, _KNOTS, _KNOTS),
        )


def augment(frames: Tensor, changes: list[Augmentation]) -> Tensor:
    """Frames [B, F, 3, S, S] in [-1, 1], each sample's by its own change, the same for all of its frames."""
    samples, count = frames.shape[:2]
    size = frames.shape[-2:]
    device, dtype = frames.device, frames.dtype
    gain, bias, gamma, offsets = (
        torch.stack([getattr(change, name) for change in changes]).to(device, dtype)
        for name in ("gain", "bias", "gamma", "offsets")
    )
    grid = F.interpolate(offsets, size, mode="bicubic", align_corners=True).movedim(1, -1)  # [B, S, S, 2]
    identity = torch.eye(2, 3, device=device, dtype=dtype).expand(samples, 2, 3)
    grid = grid + F.affine_grid(identity, [samples, 3, *size], align_corners=False)
    moved = F.grid_sample(
        frames.flatten(0, 1),
        grid.repeat_interleave(count, dim=0),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    ).unflatten(0, (samples, count))
    unit = (moved + 1) / 2
    unit = unit.clamp(1e-4, 1) ** gamma[:, :, None, None, None]
    unit = (unit - 0.5) * gain[:, None, :, None, None] + 0.5 + 0.5 * bias[:, None, :, None, None]
    return (unit * 2 - 1).clamp(-1, 1)
