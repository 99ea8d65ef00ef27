"""Augment frames to keep identity out of the motion latent z (Paper 3.1).

The motion encoder computes z from the driving frame, and the renderer learns to render the target frame from z. X-NeMo
varies colour, scale, crop and warp between the driving frame and the target. So the colour or the shape of a face in
the driving frame says nothing about the target, and only motion is useful in z.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Knots of the smooth warp along a side.
_KNOTS = 5
# `augment_places` looks up offsets in a field of this side, and finds each place by this number of fixed-point
# iterations. The offsets of two places differ by about 0.4 of the places' distance at most, so that each iteration
# removes most of the error.
_PLACES_SIDE, _PLACES_ITERATIONS = 64, 8


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Hold the bounds of a random change of pictures. Each value is drawn uniformly from -bound to +bound."""

    colour: float = 0.25
    """Change of each channel's gain, of each channel's bias, and of the logarithm of gamma, drawn separately."""
    scale: float = 0.1
    """Relative change of the width and of the height, drawn separately."""
    shift: float = 0.03
    """Shift, as a fraction of the picture's side."""
    warp: float = 0.03
    """Shift of each knot of the smooth warp, as a fraction of the picture's side."""


# Bounds of the change that the reference (the portrait) and the target share. It makes them look like another person.
PERSON = AugmentConfig(colour=0.3, scale=0.12, shift=0.05, warp=0.035)
# Bounds in place of PERSON if z is computed from a control track, which contains no identity. Strong changes of colour
# would make it impossible to tell from a closed mouth which colours its inside has.
TAUGHT_PERSON = replace(PERSON, colour=0.1)
# Bounds of a second change, drawn separately, of the driving frame alone.
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
    """Offset (x, y) from each knot of the warp to the place whose colour it takes, [2, knots, knots]. The unit is half
    the picture's side."""

    @classmethod
    def draw(cls, config: AugmentConfig, generator: torch.Generator) -> "Augmentation":
        """Draw a change within the bounds of `config`."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator) * 2 - 1

        line = torch.linspace(-1, 1, _KNOTS)
        place = torch.stack([line.expand(_KNOTS, _KNOTS), line[:, None].expand(_KNOTS, _KNOTS)])  # x, y
        # Shift and warp are fractions of the side, but offsets are in units of half the side: hence the factor 2.
        scale, shift = config.scale * uniform(2, 1, 1), 2 * config.shift * uniform(2, 1, 1)
        return cls(
            gain=1 + config.colour * uniform(3),
            bias=config.colour * uniform(3),
            gamma=torch.exp(config.colour * uniform(1)),
            offsets=place * scale + shift + 2 * config.warp * uniform(2, _KNOTS, _KNOTS),
        )


def augment(frames: Tensor, changes: list[Augmentation]) -> Tensor:
    """Return changed frames [B, F, 3, S, S] in [-1, 1]. Each sample has its own change, the same for all its frames.

    The function computes in float32, because in bf16 coordinates would be wrong by up to two pixels at 512 px. It
    returns the dtype of `frames`.
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
    """Return where `augment` moves places of a picture, [B, N, 2].

    Places are (x, y) from the picture's centre, in units of half its side.
    """
    offsets = _offsets(changes, _PLACES_SIDE, places.device)  # [B, 2, S, S]
    found = places.float()
    # The changed picture takes its colour at x from x + offset(x). So place p moves to the x with x + offset(x) = p.
    for _ in range(_PLACES_ITERATIONS):
        offset = F.grid_sample(
            offsets, found[:, None], padding_mode="border", align_corners=False
        )  # [B, 2, 1, N]
        found = places - offset[:, :, 0].mT
    return found


def _offsets(changes: list[Augmentation], side: int, device: torch.device) -> Tensor:
    """Return the offset (x, y) from each pixel to the place whose colour it takes, [B, 2, side, side].

    The unit is half the picture's side.
    """
    offsets = torch.stack([change.offsets for change in changes]).to(device)  # [B, 2, knots, knots]
    return F.interpolate(offsets, (side, side), mode="bicubic", align_corners=True)
