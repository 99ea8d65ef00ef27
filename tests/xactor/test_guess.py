"""Test the guess: how landmarks, colours and painted parts of a portrait move."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from render_models import mean_landmarks, small_components, without_zero_weights

from xactor.faces.landmarks import INNER_LIPS, LIDS, MEAN_LANDMARKS, OUTER_LIPS
from xactor.render.guess import GuessNetwork, _edge_distance, _move, _uncrossed, landmark_flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unmoved_portrait_is_guessed_unchanged(dtype):
    """The unconditional branch may take the portrait's own latents instead of a guess.

    Coordinates in bf16 would be half a pixel off at the edges of 512 px, and an unmoved picture would move.
    """
    guess = without_zero_weights(small_components()).unet.guess_network.to(dtype)
    picture = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(dtype) * 2 - 1
    still, face = torch.zeros(1, 32, dtype=dtype), mean_landmarks(1)
    with torch.no_grad():
        torch.testing.assert_close(guess(picture, face, still), picture, rtol=0.01, atol=0.01)
        assert (guess(picture, face, still + 1) - picture).abs().max() > 0.1


def test_the_guess_takes_each_colour_from_where_the_flow_says():
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one_pixel_right = torch.tensor([2 / 16, 0.0])[None, :, None, None].expand(1, 2, 16, 16)
    torch.testing.assert_close(_move(picture, one_pixel_right)[..., :-1], picture[..., 1:])


def test_colours_at_moved_landmarks_come_from_the_landmarks_and_far_from_the_face_nothing_moves():
    landmarks = mean_landmarks(1)
    drop = 0.1 * torch.exp(
        -((landmarks[..., 1] - 0.28) ** 2) / 0.1
    )  # the mouth drops by a twentieth of the side
    moved = landmarks + torch.stack([torch.zeros_like(drop), drop], dim=2)
    flow = landmark_flow(landmarks, moved, 128)
    found = F.grid_sample(flow, moved[:, None], align_corners=False)[0, :, 0].mT  # [K, 2]
    assert (moved[0] + found - landmarks[0]).abs().max() < 0.01
    assert flow[0, :, :4, :4].abs().max() < 0.002
    assert landmark_flow(landmarks, landmarks, 16).abs().max() == 0


def test_the_distance_from_an_edge_is_positive_inside():
    square = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    places = torch.tensor([[[0.0, 0.0], [0.4, 0.1], [0.7, 0.0], [0.5, 0.3]]])  # [1, 4, 2]
    wanted = torch.tensor([[0.5, 0.1, -0.2, 0.0]])
    for polygon in (square, square.flip(0)):
        torch.testing.assert_close(_edge_distance(polygon[None], places)[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("part", "rows"), [("mouth", slice(34, 54)), ("eyes", slice(20, 30))])
def test_a_part_of_the_face_is_painted_in_its_place(part, rows):
    """Only the openings' surroundings change when the network of a part paints."""
    network = GuessNetwork(4, (8, 8, 8))
    other = {"mouth": network.eyes, "eyes": network.mouth}[part]
    with torch.no_grad():
        getattr(network, part).out.bias[:] = torch.tensor([20.0, 3.0, 3.0, 3.0])
        other.out.bias[0] = -20.0
        network.correct.out.bias[2] = -20.0
        painted = network(torch.zeros(1, 3, 64, 64), mean_landmarks(1), torch.ones(1, 4))[0, 0]
    touched = (painted > 0.5).any(dim=1).nonzero().flatten()
    assert touched.min() >= rows.start
    assert touched.max() < rows.stop
    opening = MEAN_LANDMARKS[INNER_LIPS if part == "mouth" else LIDS[0]].mean(0)
    column, row = ((opening + 1) * 32).astype(int)
    assert painted[row, column] > 0.9


def test_the_guess_learns_to_move_a_mark_and_to_open_a_hole():
    """The change of z says where the mark goes, and how dark the hole is: colours that the portrait does not have."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = GuessNetwork(4, (8, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    rows = torch.arange(32.0)

    def pictures(place, dark):
        bars = torch.exp(-((rows[None, :] - 8 - place[:, None]) ** 2) / 8)[:, None, :, None]  # [n, 1, 32, 1]
        hole = ((rows > 20) & (rows < 28))[None, None, :, None] * dark[:, None, None, None]
        return (bars - 1.5 * hole).expand(-1, 3, 32, 32)

    errors = []
    for _ in range(120):
        place, dark = 6 * torch.rand(6, generator=generator), torch.rand(6, generator=generator)
        nothing = torch.zeros(6)
        change = torch.stack([place / 4, 2 * dark, nothing, nothing], dim=1)
        still, want = pictures(nothing, nothing), pictures(place, dark)
        error = (network(still, mean_landmarks(6), change) - want).abs().mean()
        errors.append(float(error.detach() / (still - want).abs().mean()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[0] == pytest.approx(1.0, abs=0.1)
    assert np.mean(errors[-20:]) < 0.4


@pytest.mark.parametrize("channels", [(8, 16), (8, 12, 16), (0, 8, 8)])
def test_wrong_channels_of_the_guess_are_refused(channels):
    with pytest.raises(ValueError, match=r"guess_channels must be 3 multiples of 8, got \("):
        small_components(guess_channels=channels)


def test_lips_and_lids_that_would_pass_each_other_meet():
    """A motion whose first frame has an open mouth closes the portrait's closed mouth further."""
    face = mean_landmarks(1)
    down = torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(_uncrossed(face, down), face)
    crossed = face.clone()
    crossed[:, INNER_LIPS[1:10], 1] -= 0.1
    crossed[:, OUTER_LIPS[1:10], 1] -= 0.1
    crossed[:, LIDS[0][9:], 1] += 0.3
    met = _uncrossed(crossed, down)
    for ring in (INNER_LIPS, *LIDS):
        gaps = met[0, ring[1 : len(ring) // 2], 1] - met[0, ring[: len(ring) // 2 : -1].copy(), 1]
        assert gaps.min() > -1e-6
    # The outer edges of the lips keep their distance from the inner ones.
    thickness = [f[0, OUTER_LIPS[5], 1] - f[0, INNER_LIPS[5], 1] for f in (crossed, met)]
    torch.testing.assert_close(thickness[1], thickness[0])
    # All other landmarks stay.
    others = np.setdiff1d(np.arange(face.shape[1]), np.concatenate([INNER_LIPS, OUTER_LIPS, LIDS.flatten()]))
    torch.testing.assert_close(met[:, others], crossed[:, others])
