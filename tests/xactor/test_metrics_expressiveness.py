"""Test Glo and Exp on movements of known variance."""

import numpy as np
import pytest

from xactor.faces import Face
from xactor.metrics.expressiveness import NOSE, UPPER_FACE, expressiveness, of_points

T = 200


def face() -> np.ndarray:
    """Return a still shape [478, 3] whose outer eye corners are 100 px apart."""
    shape = np.random.default_rng(0).normal(size=(478, 3)) * 40 + [200, 200, 0]
    shape[33], shape[263] = [150, 180, 0], [250, 180, 0]
    return shape


def wave(amplitude: float) -> np.ndarray:
    """Return a sine wave of four periods, [T]. Its variance is half the squared amplitude."""
    return amplitude * np.sin(np.linspace(0, 8 * np.pi, T, endpoint=False))


def turned(shape: np.ndarray, angles: np.ndarray, axis: int) -> np.ndarray:
    """Turn a shape [478, 3] about its centre by each angle: [T, 478, 3]."""
    a, b = [other for other in range(3) if other != axis]
    turn = np.tile(np.eye(3), (len(angles), 1, 1))
    turn[:, a, a] = turn[:, b, b] = np.cos(angles)
    turn[:, a, b], turn[:, b, a] = -np.sin(angles), np.sin(angles)
    centre = shape.mean(0)
    return (shape - centre) @ np.swapaxes(turn, 1, 2) + centre


def test_a_still_face_has_neither_glo_nor_exp():
    found = of_points(np.tile(face(), (T, 1, 1)))
    assert found.frames == T
    assert max(found.glo, found.exp) < 1e-20


def test_a_head_that_only_shifts_has_glo_but_no_exp():
    points = np.tile(face(), (T, 1, 1))
    points[..., 0] += wave(30)[:, None]
    found = of_points(points)
    assert found.glo == pytest.approx(0.3**2 / 2)
    assert found.exp < 1e-20


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_head_that_turns_and_comes_nearer_has_no_exp(axis):
    points = turned(face(), wave(0.4), axis) * (1 + wave(0.2))[:, None, None] + wave(15)[:, None, None]
    found = of_points(points)
    assert found.exp < 1e-10
    assert found.glo > 1e-3


@pytest.mark.parametrize("head", [0.0, 0.3])
def test_brows_that_rise_have_exp_for_any_movement_of_the_head(head):
    points = np.tile(face(), (T, 1, 1))
    points[:, UPPER_FACE, 1] += wave(10)[:, None]
    turned_points = np.stack(
        [turned(p, np.array([a]), 2)[0] for p, a in zip(points, wave(head)[::-1], strict=True)]
    )
    # The alignment turns the shapes about another centre and to a mean of turned shapes, so a small error remains.
    assert of_points(turned_points).exp == pytest.approx(0.1**2 / 2, rel=0.02)


def test_the_size_in_pixels_does_not_matter():
    points = np.tile(face(), (T, 1, 1))
    points[:, NOSE, 0] += wave(8)[:, None]
    near, far = of_points(points), of_points(points / 7)
    assert near.glo == pytest.approx(far.glo)
    assert near.exp == pytest.approx(far.exp)


def test_frames_without_a_face_are_excluded_and_too_few_are_named():
    points = np.tile(face(), (3, 1, 1)).astype(np.float32)
    faces = [
        Face(points=p, blendshapes=np.zeros(51, np.float32), matrix=np.eye(4, dtype=np.float32))
        for p in points
    ]
    assert expressiveness([faces[0], None, *faces[1:]]).frames == 3
    with pytest.raises(ValueError, match="at least 2 frames, got 1 of 2"):
        expressiveness([faces[0], None])
