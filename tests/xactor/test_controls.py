"""Test the fixed map between controls and latents: exact, orthogonal, bit-equal on every machine."""

import hashlib

import numpy as np
import pytest
import torch

from xactor.controls import (
    BLENDSHAPES,
    CONTROL_COUNT,
    CONTROLS,
    INDEX,
    LATENT_DIM,
    SCALES,
    controls_to_latents,
    decode_controls,
    embed_controls,
    lip_opening,
    mirror_controls,
)


def draw(frames: int = 200) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(1)).random((frames, CONTROL_COUNT)).astype(np.float32)


def test_there_are_51_blendshapes_and_6_numbers_of_pose():
    assert len(BLENDSHAPES) == 51
    assert CONTROL_COUNT == 57
    assert len(CONTROLS) == 57
    assert len(set(CONTROLS)) == 57
    assert SCALES.shape == (57,)
    assert (SCALES > 0).all()


def test_decoding_undoes_embedding_up_to_float16():
    controls = draw()
    z = embed_controls(controls).astype(np.float16)
    assert z.shape == (200, LATENT_DIM)
    assert np.abs(decode_controls(z) - controls).max() < 1e-3
    assert np.abs(decode_controls(embed_controls(controls)) - controls).max() < 1e-6


def test_distances_in_latents_are_distances_in_scaled_controls():
    one, two = draw(2)
    apart = np.linalg.norm(embed_controls(one) - embed_controls(two))
    expected = np.linalg.norm((one - two) / SCALES) * np.sqrt(LATENT_DIM / CONTROL_COUNT)
    assert apart == pytest.approx(expected, rel=1e-5)


def test_no_latent_dimension_is_constant_and_all_vary_alike():
    controls = np.random.Generator(np.random.PCG64(2)).normal(size=(2000, CONTROL_COUNT)) * SCALES
    spread = embed_controls(controls).std(axis=0)
    assert spread.min() > 0.8
    assert spread.max() < 1.2


def test_the_map_for_training_is_the_same():
    controls = draw()
    z = controls_to_latents(torch.from_numpy(controls), LATENT_DIM).numpy()
    np.testing.assert_allclose(z, embed_controls(controls), atol=1e-4)
    narrow = controls_to_latents(torch.from_numpy(controls), 32).numpy()
    np.testing.assert_allclose(narrow, z[:, :32], atol=1e-5)


def test_a_mirrored_face_looks_and_turns_the_other_way():
    controls = torch.from_numpy(draw(1)[0])
    mirrored = mirror_controls(controls)
    torch.testing.assert_close(mirror_controls(mirrored), controls)
    for name, other in (
        ("eyeBlinkLeft", "eyeBlinkRight"),
        ("jawRight", "jawLeft"),
        ("mouthLeft", "mouthRight"),
    ):
        assert mirrored[INDEX[name]] == controls[INDEX[other]]
    for name, sign in (("headYaw", -1), ("headRoll", -1), ("headX", -1), ("headPitch", 1), ("jawOpen", 1)):
        assert mirrored[INDEX[name]] == sign * controls[INDEX[name]]


def test_the_map_is_bit_equal_on_every_machine():
    ramp = (np.arange(3 * CONTROL_COUNT).reshape(3, CONTROL_COUNT) % 64) / 64
    digest = hashlib.sha256(embed_controls(ramp).astype("<f2").tobytes()).hexdigest()
    assert digest == "1bfb310f254894ff1a69c3a15b9360665b6deb565e164cf9f60a1d1764e28c29"
    assert np.array_equal(embed_controls(ramp)[1], embed_controls(ramp[1]))


def test_the_component_that_no_control_explains_is_dropped():
    z = np.random.Generator(np.random.PCG64(3)).normal(size=(5, LATENT_DIM))
    explained = embed_controls(decode_controls(z))
    assert np.allclose(decode_controls(z - explained), 0, atol=1e-5)


def test_lip_opening_is_jaw_open_minus_mouth_close():
    controls = np.zeros((4, CONTROL_COUNT))
    controls[:, INDEX["jawOpen"]] = 0.5
    controls[2, INDEX["mouthClose"]] = 0.2
    assert lip_opening(controls).tolist() == pytest.approx([0.5, 0.5, 0.3, 0.5])


@pytest.mark.parametrize("function", [embed_controls, decode_controls, lip_opening])
def test_wrong_widths_and_nan_are_refused(function):
    with pytest.raises(ValueError, match="numbers a frame"):
        function(np.zeros((3, 56)))
    with pytest.raises(ValueError, match="finite"):
        function(np.full((3, 512 if function is decode_controls else 57), np.nan))
