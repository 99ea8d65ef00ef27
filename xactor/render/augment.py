"""Augment frames to keep identity out of z: the encoder's and the renderer's frame share only motion (Paper 3.1).

X-NeMo varies colour, scale, crop and warp between the driving frame, which the encoder sees, and the target. So the
colour or the shape of a face in the driving frame says nothing about the target, and only motion is useful in z.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Knots of the smooth warp along a side.
_KNOTS = 5
# Side of the field of offsets in which places are looked up, and steps of the fixed-point iteration. An offset changes
# by about 0.4 of a distance at most, so that each step takes away most of the error.
_PLACES_SIDE, _PLACES_ITERATIONS = 64, 8


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Bound the random change of pictures. Each value is drawn uniformly from -bound to +bound."""

    colour: float = 0.25
    """Change of each channel's gain and bias, and of the logarithm of gamma."""
    scale: float = 0.1
    """Relative change of the width and of the height, drawn separately."""
    shift: float = 0.03
    """Shift, as a fraction of the picture's side."""
    warp: float = 0.03
    """Shift of each knot of the smooth warp, as a fraction of the picture's side."""


# Changes the reference and the target in the same way, as if they showed another person.
PERSON = AugmentConfig(colour=0.3, scale=0.12, shift=0.05, warp=0.035)
# Replaces PERSON where z is made from controls, which contain no identity. With strong changes of colour nobody could
# tell from a closed mouth which colours its inside has.
TAUGHT_PERSON = replace(PERSON, colour=0.1)
# Changes the driving frame once more, by its own draw.
DRIVING = AugmentConfig(colour=0.4, scale=0.04, shift=0.01, warp=0.02)


@dataclass(frozen=True)
class Augmentation:
    """Hold one change of a picture."""

    gain: Tensor
    """Gain of each channel, [3]."""
    bias: Tensor
    """Bias of each channel, [3]."""
    gamma: Tensor
    """Exponent of the intensities, [1]."""
    offsets: Tensor
    """Offset (x, y) from each knot to the place whose colour it takes, in halves of the side, [2, knots, knots]."""

    @classmethod
    def draw(cls, config: AugmentConfig, generator: torch.Generator) -> "Augmentation":
        """Draw a change within the bounds of `config`."""

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
    """Change frames [B, F, 3, S, S] in [-1, 1]. Each sample has its own change, which applies to all of its frames.

    The function computes in float32 and returns the frames' type: in bf16, coordinates would be wrong by up to two
    pixels at 512 px.
    """
    samples, count = frames.shape[:2]
    size = frames.shape[-1]
    device = frames.device
    gain, bias, gamma = (
        torch.stack([getattr(change, name) for change in changes]).to(device)
        for name in ("gain", "bias", "gamma")
    )  # [B, 3], [B, 3], [B, 1]
    grid = _offsets(changes, size, device).movedim(1, -1)  # [B, S, S, 2]
    identity = torch.eye(2, 3, device=device).expand(samples, 2, 3)
    grid = grid + F.affine_grid(identity, [samples, 3, size, size], align_corners=False)
    moved = F.grid_sample(
        frames.flatten(0, 1).float(),
        grid.repeat_interleave(count, dim=0),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    ).unflatten(0, (samples, count))  # [B, F, 3, S, S]
    unit = (moved + 1) / 2
    unit = unit.clamp(1e-4, 1) ** gamma[:, :, None, None, None]
    unit = (unit - 0.5) * gain[:, None, :, None, None] + 0.5 + 0.5 * bias[:, None, :, None, None]
    return (unit * 2 - 1).clamp(-1, 1).to(frames.dtype)


def augment_places(places: Tensor, changes: list[Augmentation]) -> Tensor:
    """Return where `augment` moves places [B, N, 2] of a picture, in halves of its side from its centre."""
    offsets = _offsets(changes, _PLACES_SIDE, places.device)  # [B, 2, S, S]
    found = places.float()
    # A place p moves to where x + offset(x) = p.
    for _ in range(_PLACES_ITERATIONS):
        offset = F.grid_sample(
            offsets, found[:, None], padding_mode="border", align_corners=False
        )  # [B, 2, 1, N]
        found = places - offset[:, :, 0].mT
    return found


def _offsets(changes: list[Augmentation], side: int, device: torch.device) -> Tensor:
    """Return the offset of each pixel to the place whose colour it takes, in halves of the side, [B, 2, side, side]."""
    offsets = torch.stack([change.offsets for change in changes]).to(device)  # [B, 2, knots, knots]
    return F.interpolate(offsets, (side, side), mode="bicubic", align_corners=True)
