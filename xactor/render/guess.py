"""Guess frames by moving the portrait before the UNet runs. Ours, after the warping renderers FOMM and LivePortrait.

The paper's UNet receives motion only through cross-attention. From random weights, such a UNet must learn to copy a
face before it can learn to move one. A UNet that also sees a guess does not need to learn to copy.

A flow is a field of offsets: for each place of the moved picture, the offset to the place in the portrait from which
the colour is taken. Places are (x, y) from the picture's centre, in halves of the side: the edges are at -1 and 1.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xactor.faces.landmarks import EYES, INNER_LIPS, LANDMARKS, LIDS, MOUTH_CORNERS, OUTER_LIPS

# Largest side of the reduced pictures in which flows are computed, and height and width at which the mouth and the eyes
# are painted, all in pixels.
_MAX_SIDE, _MOUTH_SIZE, _EYES_SIZE = 32, (48, 48), (24, 64)
# Displacement of a landmark for an output of 1 of the linear map, in units of the face (see `face_axes`). With this
# scale the map's weights are about 0.1.
DISPLACEMENT = 0.1
# Mean square of the change of z at which corrections reach half of their strength. Latents have about unit variance.
_HALF_STRENGTH = 1e-3
# Length, in halves of the side, over which a landmark moves its surroundings along, and variance of the noise that is
# assumed on a landmark's offset. The noise keeps the flow smooth where landmarks touch.
_REACH, _NOISE = 0.3, 1e-3
# The square around the mouth: half its side, and the distance of its centre below the mouth's centre, both in units of
# half the mouth's width. That half counts as at least _PURSED times the mouth's distance from the eyes (pursed lips).
_MOUTH_REACH, _MOUTH_BELOW, _PURSED = 1.4, 0.4, 0.33
# The rectangle around the eyes: half its width, in units of half the distance between the eyes' outer corners.
_EYES_REACH = 1.25
# Unit in which the distance from the edge of an opening (mouth or eye) is measured, in halves of the part's sides, and
# the maximum of this distance, in that unit.
_EDGE, _MAX_EDGES = 0.02, 6
# Width of the code: a vector, computed from the change of z, that scales and shifts the channels of layers.
_CODE = 128


class GuessNetwork(nn.Module):
    """Move a portrait by the change of its motion latent z.

    A linear map of the change moves the portrait's landmarks, and a smooth flow moves the colours between them. Then
    three convolutional networks see the moved portrait and correct it. The change conditions these networks: it scales
    and shifts their channels (FiLM, Perez et al. 2018). The first network works on the portrait at a small size. For
    each place it returns a correction of the flow, a new colour, and the cover: the share of the new colour. The second
    network paints the eyes' lids, and the third paints what opens between the lips. All corrections are zero without a
    change, so that an unmoved portrait stays as it is.

    Args:
        latent_dim: Width of z.
        channels: Channels of the three levels of these networks. Each level has half the side of the previous one.
    """

    def __init__(self, latent_dim: int, channels: tuple[int, ...]):
        super().__init__()
        if len(channels) != 3 or any(c < 8 or c % 8 for c in channels):
            raise ValueError(f"guess_channels must be 3 multiples of 8, got {tuple(channels)}")
        self.displace = nn.Linear(latent_dim, 2 * len(LANDMARKS), bias=False)
        nn.init.zeros_(self.displace.weight)
        # Maps the 3 colours of the moved portrait to 6 channels: 2 of flow, 1 of cover and 3 of colour.
        self.correct = _ConditionedNetwork(3, channels, latent_dim, 6)
        self.eyes = _Painter(channels, latent_dim, _EYES_SIZE, opening=0.0)
        # An untrained network paints the mouth where it is open.
        self.mouth = _Painter(channels, latent_dim, _MOUTH_SIZE, opening=1.0)
        with torch.no_grad():
            # New colours start with a share of about 1 % (the sigmoid of -5), except in the mouth.
            for layer, channel in ((self.correct.out, 2), (self.eyes.out, 0)):
                layer.bias[channel] = -5.0  # pyright: ignore[reportOptionalSubscript]

    def forward(self, pictures: Tensor, landmarks: Tensor, change: Tensor, *, scale: int = 1) -> Tensor:
        """Return the moved pictures, [N, 3, S, S].

        Args:
            pictures: Portraits, [N, 3, S, S] in [-1, 1].
            landmarks: Landmarks of the portraits, float32 [N, K, 2]; see `xactor.faces.landmarks`.
            change: Motion latents minus those of the portraits, float32 [N, latent_dim].
            scale: How many times larger the portraits are than those in training. The network sees reduced portraits,
                but moves the full-size ones.
        """
        strength = change.square().mean(1)
        strength = (strength / (_HALF_STRENGTH + strength))[:, None, None, None]  # [N, 1, 1, 1], from 0 to 1
        moved_landmarks = self.moved(landmarks, change)  # [N, K, 2]
        side = min(pictures.shape[-1] // scale // 2, _MAX_SIDE)
        # The flow stays in float32: in bf16 it would move a picture of 512 px by up to half a pixel too far, in stairs.
        flow = landmark_flow(landmarks, moved_landmarks, side)  # [N, 2, side, side]
        small = _move(F.interpolate(pictures, (side, side), mode="area"), flow)  # [N, 3, side, side]
        found = self.correct(small, change).float()  # [N, 6, side, side]
        correction = strength * found[:, :2]
        # Go to the corrected place first. The landmarks' flow at that place then leads to the colour.
        flow = correction + _move(flow, correction)
        found = torch.cat([flow, found[:, 2:]], dim=1)
        found = F.interpolate(found, pictures.shape[-2:], mode="bilinear", align_corners=False)
        flow, cover, colour = found.split([2, 1, 3], dim=1)
        moved = _move(pictures, flow)  # [N, 3, S, S]
        cover = strength * torch.sigmoid(cover)  # [N, 1, S, S]
        moved = (moved + cover * (torch.tanh(colour) - moved)).to(pictures.dtype)
        lids = moved_landmarks[:, LIDS]  # [N, 2, 16, 2]
        lips = moved_landmarks[:, None, INNER_LIPS]  # [N, 1, 20, 2]
        moved = self.eyes.paint(moved, _eyes_part(moved_landmarks), lids, change, strength, scale=scale)
        return self.mouth.paint(moved, _mouth_part(moved_landmarks), lips, change, strength, scale=scale)

    def moved(self, landmarks: Tensor, change: Tensor) -> Tensor:
        """Return where the landmarks are after a change of the motion latent, float32 [N, K, 2].

        Args:
            landmarks: Landmarks of the portraits, float32 [N, K, 2].
            change: Motion latents minus those of the portraits, float32 [N, latent_dim].
        """
        displacement = F.linear(change.float(), self.displace.weight.float())  # [N, 2 K]
        displacement = DISPLACEMENT * displacement.unflatten(1, (-1, 2))  # [N, K, 2]
        axes = face_axes(landmarks)
        return _uncrossed(landmarks + _transformed(axes, displacement), axes[:, :, 1])


class _ConditionedNetwork(nn.Module):
    """Run a small U-Net whose channels are scaled and shifted by a function of the change of the motion latent.

    The weights of the last layer start at zero.

    Args:
        width_in: Channels of the input.
        channels: Channels of the three levels.
        latent_dim: Width of z.
        width_out: Channels of the output.
    """

    def __init__(self, width_in: int, channels: tuple[int, ...], latent_dim: int, width_out: int):
        super().__init__()
        fine, middle, coarse = channels
        # Two more channels tell the network the place of each pixel.
        self.stem = _conv(width_in + 2, fine)
        self.down = nn.ModuleList([_conv(fine, middle, stride=2), _conv(middle, coarse, stride=2)])
        self.read = nn.ModuleList([_conv(middle, middle), _conv(coarse, coarse)])
        self.code = nn.Sequential(nn.Linear(latent_dim, _CODE), nn.SiLU(), nn.Linear(_CODE, _CODE), nn.SiLU())
        self.blocks = nn.ModuleList([_ConditionedBlock(coarse, coarse), _ConditionedBlock(coarse, coarse)])
        self.up = nn.ModuleList(
            [_ConditionedBlock(coarse + middle, middle), _ConditionedBlock(middle + fine, fine)]
        )
        self.out = _conv(fine, width_out)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, pictures: Tensor, change: Tensor) -> Tensor:
        """Return the output [N, width_out, h, w] for pictures [N, width_in, h, w] and changes [N, latent_dim]."""
        code = self.code(change.to(pictures.dtype))  # [N, code]
        height, width = pictures.shape[-2:]
        places = _places(height, width, pictures.device).movedim(-1, 0).to(pictures.dtype)  # [2, h, w]
        levels = [self.stem(torch.cat([pictures, places.expand(len(pictures), -1, -1, -1)], dim=1))]
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
        return self.out(F.silu(x))


class _Painter(_ConditionedNetwork):
    """Paint lids, or what opens between the lips, in a part of a moved portrait.

    The part is a rectangle around the mouth or the eyes. Its openings are the mouth's inside or the two eyes.

    Args:
        channels: Channels of the three levels.
        latent_dim: Width of z.
        size: Height and width at which the part is painted, in pixels.
        opening: 1 if an untrained network paints the openings of the part, 0 if it paints nothing.
    """

    def __init__(self, channels: tuple[int, ...], latent_dim: int, size: tuple[int, int], *, opening: float):
        # Maps 4 channels (the part's 3 colours and the distance from an opening's edge) to 4: 1 of cover, 3 of colour.
        super().__init__(4, channels, latent_dim, 4)
        self._size, self._opening = size, opening

    def paint(
        self,
        pictures: Tensor,
        part: tuple[Tensor, Tensor],
        openings: Tensor,
        change: Tensor,
        strength: Tensor,
        *,
        scale: int,
    ) -> Tensor:
        """Return the painted pictures, [N, 3, S, S].

        Args:
            pictures: Moved portraits, [N, 3, S, S].
            part: Half-axes of the part as columns, [N, 2, 2], and its centre, [N, 2], in halves of the pictures' side.
            openings: Edges of the openings in the part, as R polygons of P moved landmarks, [N, R, P, 2].
            change: Change of the motion latents, [N, latent_dim].
            strength: Strength of new colours, 0..1, [N, 1, 1, 1].
            scale: How many times larger the portraits are than those in training.
        """
        axes, centre = part
        # The axes are perpendicular, so the inverse is the transpose, divided by the squares of the axes' lengths.
        inverse = axes.mT / axes.square().sum(1)[:, :, None]  # [N, 2, 2]
        shift = -_transformed(inverse, centre[:, None])  # [N, 1, 2]
        reduced = F.avg_pool2d(pictures, scale) if scale > 1 else pictures
        seen = _take(reduced, torch.cat([axes, centre[:, :, None]], dim=2), self._size)  # [N, 3, h, w]
        places = _places(*self._size, openings.device)
        # The openings' edges in the part: from its centre, in halves of its sides, [N, R, P, 2].
        edges = _transformed(inverse, (openings - centre[:, None, None]).flatten(1, 2)).view_as(openings)
        inside = torch.stack([_edge_distance(edge, places) for edge in edges.unbind(1)]).amax(0) / _EDGE
        # > 0 inside an opening, in units of _EDGE.
        inside = inside.clamp(-_MAX_EDGES, _MAX_EDGES)[:, None].to(seen.dtype)  # [N, 1, h, w]
        cover, colour = self(torch.cat([seen, inside / _MAX_EDGES], dim=1), change).split([1, 3], dim=1)
        # With `opening` 1, an untrained network's cover grows towards an opening's inside. It is half at 2 units.
        cover = strength * torch.sigmoid(self._opening * (inside - 2) + cover)  # [N, 1, h, w]
        painted = torch.cat([cover, cover * torch.tanh(colour)], dim=1).to(pictures.dtype)  # [N, 4, h, w]
        # Outside the part, cover and colour are 0, so that the picture stays as it is.
        to_part = torch.cat([inverse, shift.mT], dim=2)  # [N, 2, 3]
        cover, colour = _take(painted, to_part, pictures.shape[-2:], padding="zeros").split([1, 3], dim=1)
        return pictures * (1 - cover) + colour


class _ConditionedBlock(nn.Module):
    """Run a residual block whose channels are scaled and shifted by a function of the code."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.conv1, self.conv2 = _conv(width_in, width_out), _conv(width_out, width_out)
        self.norm = nn.GroupNorm(8, width_out)
        self.film = nn.Linear(_CODE, 2 * width_out)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code)[:, :, None, None].chunk(2, dim=1)  # [N, C, 1, 1]
        h = self.norm(self.conv1(F.silu(x))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


def landmark_flow(landmarks: Tensor, moved: Tensor, side: int) -> Tensor:
    """Return the smooth flow that takes colours from the landmarks to the moved landmarks: [N, 2, side, side].

    At each place it is the offset to the place that the colour comes from, in halves of the side. It is the mean of a
    Gaussian process (Matern 3/2) that is fitted to the landmarks' offsets. It becomes zero far from the face.

    Args:
        landmarks: The landmarks in the portraits, float32 [N, K, 2].
        moved: The landmarks in the moved portraits, float32 [N, K, 2].
        side: Side of the flow in pixels.
    """
    # Compute in float64, because landmarks that touch make the system of equations nearly singular. Gradients pass
    # through the landmarks' offsets alone. Gradients through the covariances too would cost three times as much.
    with torch.no_grad():
        moved64 = moved.double()
        places = _places(side, side, moved.device, torch.float64).flatten(0, 1).expand(len(moved), -1, -1)
        to_places, among = _matern(torch.cdist(places, moved64)), _matern(torch.cdist(moved64, moved64))
        noise = _NOISE * torch.eye(moved.shape[1], device=moved.device)
        # cholesky_ex accepts latents that are not finite. Their loss is not finite, so training skips the step.
        factor = torch.linalg.cholesky_ex(among + noise)[0]  # [N, K, K]
    weights = torch.cholesky_solve((landmarks - moved).double(), factor)  # [N, K, 2]
    return (to_places @ weights).float().mT.unflatten(2, (side, side))


def _matern(distance: Tensor) -> Tensor:
    """Return the covariance of two places for each distance, in halves of the side. Overwrites `distance`."""
    distance.div_(_REACH)
    return torch.exp(-distance).mul_(distance.add_(1))


def face_axes(landmarks: Tensor) -> Tensor:
    """Return the face's axes as columns, in halves of the side: [N, 2, 2].

    The first axis points to the picture's right along the eyes, and the second one down the face. Their lengths are the
    units of the face: half the distance between the eyes, and half the distance from the eyes to the mouth.
    """
    left, right = landmarks[:, EYES].mean(2).unbind(1)  # [N, 2] each
    mouth = landmarks[:, MOUTH_CORNERS].mean(1)  # [N, 2]
    across = (right - left) / 2
    down = _turned(across) / across.norm(dim=1, keepdim=True).clamp(min=1e-6)
    height = (mouth - (left + right) / 2).norm(dim=1, keepdim=True) / 2
    return torch.stack([across, down * height], dim=2)


def _uncrossed(landmarks: Tensor, down: Tensor) -> Tensor:
    """Return landmarks [N, K, 2] in which lips and lids that have passed through each other are moved back to meet.

    A change of z may close a mouth that is already closed in the portrait. The change is measured from the first frame
    of a performance, and the mouth may be open in that frame.

    Args:
        landmarks: Moved landmarks, [N, K, 2].
        down: The face's axis from the eyes to the mouth, [N, 2].
    """
    down = down / down.norm(dim=1, keepdim=True).clamp(min=1e-6)
    moves = torch.zeros_like(landmarks)
    # The outer edges of the lips move together with the inner ones.
    for ring, others in ((INNER_LIPS, (INNER_LIPS, OUTER_LIPS)), *((lid, (lid,)) for lid in LIDS)):
        lower, upper = _facing(ring)
        gap = ((landmarks[:, lower] - landmarks[:, upper]) * down[:, None]).sum(2)  # [N, M], < 0 if passed
        move = gap.clamp(max=0)[:, :, None] / 2 * down[:, None]  # [N, M, 2]
        for other in others:
            lower, upper = _facing(other)
            moves[:, lower], moves[:, upper] = -move, move
    return landmarks + moves


def _facing(ring: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return positions in LANDMARKS of the lower and of the upper edge of an opening, [M] each.

    Entry m of the lower edge lies opposite entry m of the upper edge. The corners are left out.
    """
    half = len(ring) // 2
    return torch.from_numpy(ring[1:half].copy()), torch.from_numpy(ring[:half:-1].copy())


def _mouth_part(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square around the mouth: its half-axes as columns, [N, 2, 2], and its centre, [N, 2]."""
    corners = landmarks[:, MOUTH_CORNERS]  # [N, 2, 2]
    centre = corners.mean(1)
    # The small number keeps the square from being empty if both corners are at one place.
    across = (corners[:, 1] - corners[:, 0]) / 2 + 1e-6
    eyes = landmarks[:, EYES].mean((1, 2))  # [N, 2]
    width = across.norm(dim=1, keepdim=True)
    across = across / width * torch.maximum(width, _PURSED * (eyes - centre).norm(dim=1, keepdim=True))
    down = _turned(across)
    return _MOUTH_REACH * torch.stack([across, down], dim=2), centre + _MOUTH_BELOW * down


def _eyes_part(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rectangle around the eyes: its half-axes as columns, [N, 2, 2], and its centre, [N, 2]."""
    corners = landmarks[:, EYES]  # [N, 2, 2, 2]
    across = _EYES_REACH * (corners[:, 1, 1] - corners[:, 0, 0]) / 2 + 1e-6
    height, width = _EYES_SIZE
    return torch.stack([across, _turned(across) * height / width], dim=2), corners.mean((1, 2))


def _transformed(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products of matrices [N, 2, 2] and vectors [N, M, 2]: [N, M, 2].

    They are computed elementwise in float32, because autocast or TF32 would round the result of a matrix product.
    """
    return (matrices[:, None] * vectors[:, :, None]).sum(3)


def _turned(vectors: Tensor) -> Tensor:
    """Turn vectors [N, 2] that point to the right so that they point down."""
    x, y = vectors.unbind(1)
    return torch.stack([-y, x], dim=1)


def _edge_distance(polygon: Tensor, places: Tensor) -> Tensor:
    """Return the distance of places [h, w, 2] from the edge of polygons [N, P, 2], > 0 inside: [N, h, w]."""
    a = polygon[:, :, None, None]  # [N, P, 1, 1, 2]
    edge = polygon.roll(-1, dims=1)[:, :, None, None] - a
    to_place = places - a  # [N, P, h, w, 2]
    along = (to_place * edge).sum(-1) / edge.square().sum(-1).clamp(min=1e-12)  # [N, P, h, w]
    nearest = to_place - along.clamp(0, 1)[..., None] * edge
    distance = nearest.square().sum(-1).amin(1).add(1e-12).sqrt()  # [N, h, w]
    # A ray to the right crosses the edges of a polygon an odd number of times if it starts inside.
    above = to_place[..., 1] < 0
    next_above = above.roll(-1, dims=1)
    rising = edge[..., 1] > 0
    right_of = (to_place[..., 0] * edge[..., 1] < to_place[..., 1] * edge[..., 0]) == rising
    inside = ((above != next_above) & right_of).sum(1) % 2 == 1  # [N, h, w]
    return torch.where(inside, distance, -distance)


def _places(height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the places (x, y) of the centres of a picture's pixels, in halves of its sides: [height, width, 2]."""
    rows, columns = ((torch.arange(n, device=device, dtype=dtype) * 2 + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)


def _move(pictures: Tensor, flow: Tensor) -> Tensor:
    """Move pictures by a flow. Return the moved pictures, [N, C, S, S].

    Args:
        pictures: [N, C, S, S].
        flow: Offsets (x, y) to the places that colours come from, in halves of the side, [N, 2, S, S].
    """
    # Compute the grid in float32: in bf16 it would be wrong by up to half a pixel.
    still = torch.eye(2, 3, device=pictures.device).expand(len(pictures), 2, 3)
    grid = F.affine_grid(still, list(pictures.shape), align_corners=False)  # [N, S, S, 2]
    grid = grid + flow.movedim(1, -1).float()
    moved = F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)
    return moved.to(pictures.dtype)


def _take(pictures: Tensor, affine: Tensor, size: tuple[int, ...], *, padding: str = "border") -> Tensor:
    """Return a part of pictures [N, C, S, S], resampled to `size`: [N, C, *size].

    Args:
        affine: Affine maps from places in the part to places in the pictures, [N, 2, 3].
        padding: Treatment of places outside the pictures, as in `grid_sample`.
    """
    grid = F.affine_grid(affine.float(), [len(pictures), 1, *size], align_corners=False)
    taken = F.grid_sample(pictures.float(), grid, padding_mode=padding, align_corners=False)
    return taken.to(pictures.dtype)


def _conv(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, stride, 1)
