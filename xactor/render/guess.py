"""Guess frames by a warp of the portrait before the UNet runs. Ours, after the warping renderers FOMM and LIA.

The paper's UNet receives motion by cross-attention alone. A UNet that also sees a guess need not learn to copy a face
from random weights before it can learn to move one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# A motion token stands for CELL x CELL places.
CELL = 4
# Numbers of each place: the offset to where its colour comes from, x and y, and the change of its colour, RGB.
NUMBERS = 5
# Pixels of a thumbnail per place, along a side.
_THUMBNAIL_PX = 2
TOKEN_NUMBERS = NUMBERS * CELL**2
"""Numbers of a motion token that the guess uses: the token's width must be at least this."""


def warp(tokens: Tensor, pictures: Tensor) -> Tensor:
    """Move and colour pictures as a change of motion tokens says.

    Motion tokens lie in a square grid over the face, and the first numbers of each belong to its 4 x 4 places: the
    offset to where its colour comes from, in eighths of the picture's side, and the change of its colour, in quarters
    of [-1, 1]. So z has places before it reaches the UNet. As in FOMM and LIA the same motion gives the same offsets
    for everyone: offsets fit more faces than colours do.

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
    # In float32: bf16 would be wrong by up to half a pixel.
    still = torch.eye(2, 3, device=tokens.device).expand(len(tokens), 2, 3)
    grid = F.affine_grid(still, list(pictures.shape), align_corners=False)  # [N, T, T, 2]
    grid = grid + places[:, :2].movedim(1, -1).float() / 4  # [N, T, T, 2]
    moved = F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)  # [N, 3, T, T]
    return moved.to(pictures.dtype) + places[:, 2:]


def thumbnails(pictures: Tensor, motion_tokens: int) -> Tensor:
    """Reduce pictures [N, 3, S, S] so that two pixels along a side are one place: [N, 3, T, T]."""
    return F.adaptive_avg_pool2d(pictures, _THUMBNAIL_PX * CELL * math.isqrt(motion_tokens))
