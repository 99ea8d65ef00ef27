"""Test the loss of stage 1: its terms, and the parameters that each phase trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from render_models import small_components, without_zero_weights

from xactor.controls import INDEX, controls_to_latents
from xactor.faces.landmarks import LIDS, MEAN_LANDMARKS
from xactor.render import RenderObjective
from xactor.render.augment import DRIVING, PERSON, Augmentation, augment, augment_places
from xactor.render.objective import FaceTracks, ObjectiveConfig, shared_part


@pytest.fixture(scope="module")
def objective() -> RenderObjective:
    # The weight is large, so that this term is visible next to the errors.
    config = ObjectiveConfig(person_weight=1.0)
    return RenderObjective(**vars(without_zero_weights(small_components())), config=config, train_vae=True)


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor, list[tuple]]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (3, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return frames, frames[:, 0], [(0, 0, f"clip-{i}", 5) for i in range(3)]


@pytest.mark.parametrize(
    ("phase", "count"), [("vae", 2), ("motion", 2), ("frames", 1), ("frames", 2), ("temporal", 4)]
)
def test_a_sample_has_the_same_loss_alone_and_in_a_batch(objective, clips, phase, count):
    frames, reference, seeds = clips
    with torch.no_grad():
        batched = objective(frames[:, :count], reference, torch.tensor([1.0, 0.0, 1.0]), seeds, phase)
        alone = [
            objective(frames[i : i + 1, :count], reference[i : i + 1], torch.ones(1), seeds[i : i + 1], phase)
            for i in (0, 2)
        ]
    torch.testing.assert_close(batched, sum(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("phase", ["vae", "motion", "frames", "temporal"])
def test_a_phase_trains_its_own_group(objective, clips, phase):
    frames, reference, seeds = clips
    objective.zero_grad()
    objective(frames[:, : 4 if phase == "temporal" else 1], reference, torch.ones(3), seeds, phase).backward()
    groups = objective.parameter_groups()
    gradient_count = {
        name: sum(p.grad is not None and bool(p.grad.any()) for p in group) for name, group in groups.items()
    }
    assert gradient_count[phase] > 0.8 * len(groups[phase])
    if phase == "temporal":
        layers = [layer.proj_out.weight.grad for layer in objective.unet.temporal_layers()]
        assert all(gradient is not None and gradient.any() for gradient in layers)
    else:
        assert gradient_count["temporal"] == 0
    if phase != "vae":
        assert gradient_count["vae"] == 0
    trained = [id(p) for group in groups.values() for p in group]
    assert len(trained) == len(set(trained))
    reached = {id(p) for p in objective.parameters() if p.grad is not None and p.grad.any()}
    assert reached <= set(trained)


def test_the_reference_network_trains(clips):
    """The gradient of the loss passes the UNet's self-attention and reaches the reference's features."""
    frames, reference, seeds = clips
    objective = RenderObjective(**vars(without_zero_weights(small_components())))
    objective(frames[:, :1], reference, torch.ones(3), seeds, "frames").backward()
    assert objective.reference_unet.conv_in.weight.grad.abs().sum() > 0
    assert not objective.parameter_groups()["vae"]


def test_shared_part_is_the_fraction_of_latents_that_frames_have_in_common():
    z = torch.randn(200, 5, 64, generator=torch.Generator().manual_seed(0))
    near = {"atol": 0.02, "rtol": 0}
    torch.testing.assert_close(shared_part(z).mean(), torch.tensor(0.0), **near)
    torch.testing.assert_close(shared_part(z + 1).mean(), torch.tensor(0.5), **near)
    torch.testing.assert_close(shared_part(0.01 * (z + 1)), shared_part(z + 1))
    torch.testing.assert_close(shared_part(z[:, :1].expand_as(z)), torch.ones(200))
    assert (shared_part(torch.zeros(2, 3, 4)) == 0).all()


def test_the_mouth_weighs_more_in_the_motion_encoders_loss(clips):
    """An error at the mouth weighs three times as much, and an error elsewhere weighs less in return."""
    _, _, seeds = clips

    def loss(rows: slice, mouth_weight: float) -> float:
        still = torch.full((3, 32, 32, 3), 100, dtype=torch.uint8)
        frames = still.clone()
        frames[:, rows, 12:20] = 255
        config = ObjectiveConfig(kl_weight=0, person_weight=0, mouth_weight=mouth_weight)
        objective = RenderObjective(**vars(small_components()), config=config)
        with torch.no_grad():
            return float(objective(frames[:, None], still, torch.ones(3), seeds, "motion"))

    mouth, brow = slice(19, 24), slice(4, 9)
    assert loss(mouth, 2.0) > 1.5 * loss(mouth, 0.0)
    assert loss(brow, 2.0) < 0.95 * loss(brow, 0.0)


def test_with_controls_the_encoder_learns_only_them_and_the_renderer_moves_by_them(clips):
    """Random controls are no function of the pictures, so the guess may not depend on what the encoder says."""
    frames, reference, seeds = clips
    controls = torch.rand(3, 5, 57, generator=torch.Generator().manual_seed(1))
    objective = RenderObjective(**vars(without_zero_weights(small_components())))

    def loss(controls, **config):
        objective.config = ObjectiveConfig(kl_weight=0, **config)
        objective.zero_grad()
        total = objective(frames, reference, torch.ones(3), seeds, "motion", FaceTracks(controls=controls))
        total.backward()
        return float(total.detach())

    def gradients(module) -> int:
        return sum(p.grad is not None and bool(p.grad.any()) for p in module.parameters())

    loss(controls, controls_weight=0.0)
    assert gradients(objective.motion_encoder) == 0
    assert gradients(objective.unet.guess_network) > 10
    loss(controls, motion_weight=0.0)
    assert gradients(objective.motion_encoder) > 10
    assert gradients(objective.unet.guess_network) == 0
    moved = loss(controls, controls_weight=0.0)
    assert abs(moved - loss(controls * 0, controls_weight=0.0)) > 1e-3 * moved


def test_an_encoder_learns_the_controls_of_a_mirrored_clip():
    """A bar that moves to the right by headX. Clips are mirrored at random, and their controls with them."""
    torch.manual_seed(0)
    objective = RenderObjective(
        **vars(small_components()), config=ObjectiveConfig(motion_weight=0.0, kl_weight=0)
    )
    # The guess costs most of the time, and learns nothing here.
    objective.unet.requires_grad_(False)
    optimizer = torch.optim.Adam(objective.motion_encoder.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for step in range(60):
        place = torch.rand(8, 3, generator=generator) * 2 - 1
        bar = (torch.linspace(-2, 2, 32) - place[..., None]).abs() < 0.5  # [8, 3, 32]
        pictures = (bar[:, :, None, :, None] * 200).expand(8, 3, 32, 32, 3).to(torch.uint8)
        controls = torch.zeros(8, 3, 57)
        controls[..., INDEX["headX"]] = 0.06 * place
        seeds = [(step, i) for i in range(8)]
        tracks = FaceTracks(controls=controls)
        loss = objective(pictures[:, 1:], pictures[:, 0], torch.ones(8), seeds, "motion", tracks) / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    # The variance of a unit square in -1..1 is 1/3, over the 57 controls that share a latent.
    assert np.mean(errors[:5]) > 0.8 / 3 / 57
    assert np.mean(errors[-10:]) < 0.35 * np.mean(errors[:5])


def test_a_guess_learns_how_controls_move_landmarks_of_mirrored_clips():
    """The left eye closes by its own control. Clips are mirrored at random: then the right one closes by its own."""
    torch.manual_seed(0)
    config = ObjectiveConfig(motion_weight=0.0, controls_weight=0.0, kl_weight=0)
    objective = RenderObjective(**vars(small_components()), config=config)
    network = objective.unet.guess_network
    objective.requires_grad_(False)
    network.displace.requires_grad_(True)
    optimizer = torch.optim.Adam(network.displace.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(4, 2, 32, 32, 3, dtype=torch.uint8)
    left, right = (
        torch.from_numpy(ring) for ring in LIDS
    )  # in the picture, so the person's right eye is first
    closed = {"eyeBlinkRight": left, "eyeBlinkLeft": right}
    for step in range(100):
        controls = torch.zeros(4, 3, 57)
        landmarks = torch.from_numpy(MEAN_LANDMARKS).repeat(4, 3, 1, 1)
        for name, lids in closed.items():
            blink = torch.rand(4, 2, generator=generator)
            controls[:, 1:, INDEX[name]] = blink
            landmarks[:, 1:, lids, 1] += 0.05 * blink[:, :, None]
        tracks = FaceTracks(controls=controls[:, :2], landmarks=landmarks, landmark_controls=controls)
        seeds = [(step, i) for i in range(4)]
        loss = objective(pictures[:, 1:], pictures[:, 0], torch.ones(4), seeds, "motion", tracks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    one = torch.zeros(1, 57)
    one[0, INDEX["eyeBlinkRight"]] = 1
    change = controls_to_latents(one, 32)
    face = torch.from_numpy(MEAN_LANDMARKS)[None]
    found = (network.moved(face, change) - face)[0].detach()
    assert abs(found[left, 1].mean() - 0.05) < 0.01
    assert abs(found[right, 1].mean()) < 0.01


def test_places_move_as_the_pictures_around_them():
    """A dot is where `augment_places` says that it moves to."""
    changes = [Augmentation.draw(PERSON, torch.Generator().manual_seed(seed)) for seed in range(8)]
    size = 128
    for place in ((0.0, 0.0), (-0.4, 0.3), (0.5, -0.5)):
        places = torch.tensor(place).expand(8, 1, 2)
        line = (torch.arange(size) * 2 + 1) / size - 1
        x, y = place
        dot = torch.exp(-((line[None] - x) ** 2 + (line[:, None] - y) ** 2) / 0.05**2)
        exact = [replace(c, gain=torch.ones(3), bias=torch.zeros(3), gamma=torch.ones(1)) for c in changes]
        moved = augment((dot * 2 - 1).expand(8, 1, 3, -1, -1), exact)[:, 0, 0] / 2 + 0.5  # [8, size, size]
        mass = (moved - 0.01).clamp(min=0)
        centre = torch.stack([(mass.sum(1) * line).sum(1), (mass.sum(2) * line).sum(1)], 1)
        centre = centre / mass.sum((1, 2))[:, None]
        assert (augment_places(places, changes)[:, 0] - centre).abs().max() < 0.01
        assert (centre - torch.tensor(place)).abs().max() > 0.03


@pytest.mark.parametrize("phase", ["frames", "temporal"])
def test_without_a_guess_z_learns_through_the_unet(clips, phase):
    frames, reference, seeds = clips
    objective = RenderObjective(**vars(without_zero_weights(small_components(guess_channels=None))))
    assert not any("guess" in name for name, _ in objective.unet.named_parameters())
    objective(frames[:, : 4 if phase == "temporal" else 1], reference, torch.ones(3), seeds, phase).backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.unet.motion_proj.parameters())


def test_an_augmentation_in_bf16_moves_pictures_as_one_in_float32():
    """Coordinates in bf16 would move the stripes of a picture of 512 px by up to two pixels."""
    stripes = (torch.arange(512) // 8 % 2 * 2.0 - 1).expand(1, 1, 3, 512, 512)
    changes = [Augmentation.draw(PERSON, torch.Generator().manual_seed(0))]
    exact = augment(stripes, changes)
    rounded = augment(stripes.to(torch.bfloat16), changes)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.01


def test_an_augmentation_is_the_same_for_all_frames_of_a_sample(clips):
    picture = torch.rand(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changes = [Augmentation.draw(DRIVING, torch.Generator().manual_seed(i)) for i in range(2)]
    out = augment(picture.expand(2, 3, 3, 32, 32), changes)
    assert torch.equal(out[0, 0], out[0, 2])
    assert not torch.allclose(out[0, 0], out[1, 0], atol=0.05)
    assert out.abs().max() <= 1
