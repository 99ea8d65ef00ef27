"""Guess frames by warping the portrait before the UNet runs. Ours, after the warping renderers FOMM and LIA.

The paper's UNet receives motion only through cross-attention. From random weights, such a UNet must learn to copy a
face before it can learn to move one. A UNet that also sees a guess need not.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# A motion token describes CELL x CELL places of the picture.
CELL = 4
# Numbers per place: the offset (x, y) to the place that its colour comes from, and the change of its colour (RGB).
NUMBERS = 5
# Pixels of a thumbnail per place, along one side.
_THUMBNAIL_PX = 2
TOKEN_NUMBERS = NUMBERS * CELL**2
"""Number of a motion token's components that the guess uses. A token must be at least this wide."""


def warp(tokens: Tensor, pictures: Tensor) -> Tensor:
    """Move and colour pictures as a change of motion tokens says.

    Motion tokens lie in a square grid over the face. The first components of a token belong to its 4 x 4 places. For
    each place they are the offset to the place that its colour comes from, in units of 1/32 of the picture's side, and
    the change of its colour, in units of 1/4. So z is tied to places before it reaches the UNet. As in FOMM and LIA,
    the same motion gives the same offsets for every person, because offsets fit more faces than colours do.

    Args:
        tokens: Change of the motion tokens since the pictures, [N, M, C].
        pictures: [N, 3, T, T] in [-1, 1].

    Returns:
        [N, 3, T, T].
    """
    side = math.isqrt(tokens.shape[1])
    places = tokens[..., :TOKEN_NUMBERS].unflatten(-1, (NUMBERS, CELL, CELL))  # [N, M, 5, 4, 4]
    places = places.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)  # [N, 5, side, 4, side, 4]
    places = places.flatten(4, 5).flatten(2, 3) / 4  # [N, 5, side * 4, side * 4]
    places = F.interpolate(places, pictures.shape[-2:], mode="bilinear", align_corners=False)  # [N, 5, T, T]
    # Compute the grid in float32: in bf16 it would be wrong by up to half a pixel.
    still = torch.eye(2, 3, device=tokens.device).expand(len(tokens), 2, 3)
    grid = F.affine_grid(still, list(pictures.shape), align_corners=False)  # [N, T, T, 2]
    grid = grid + places[:, :2].movedim(1, -1).float() / 4  # [N, T, T, 2]
    moved = F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)  # [N, 3, T, T]
    return moved.to(pictures.dtype) + places[:, 2:]


def thumbnails(pictures: Tensor, motion_tokens: int) -> Tensor:
    """Reduce pictures [N, 3, S, S] so that each place has two pixels along a side: [N, 3, T, T]."""
    return F.adaptive_avg_pool2d(pictures, _THUMBNAIL_PX * CELL * math.isqrt(motion_tokens))
