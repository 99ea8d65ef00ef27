"""Test that models in bf16 compute coordinates, angles, noise levels and statistics as exactly as in float32.

Weights in bf16 are compared with the same numbers in float32, so that only the arithmetic differs.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from motion_models import small_model
from render_models import mean_landmarks, published, small_components, without_zero_weights

from xactor.motion import MotionScheduler, load_motion_model
from xactor.render import RenderConfig, Renderer, RenderObjective, published_components
from xactor.render.attention import Locality, _split_columns
from xactor.render.frames import to_model
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.objective import FaceTracks
from xactor.render.prediction import predict

BF16 = torch.bfloat16


def both(module: Any) -> tuple[Any, Any]:
    """Return the module in float32, with weights that bf16 can hold, and in bf16."""
    low = module.to(BF16)
    return copy.deepcopy(low).float(), low


# --- coordinates --------------------------------------------------------------------------------------------------


def test_a_guess_moves_a_picture_of_512_px_as_in_float32():
    """A flow in bf16 would move the stripes' edges by up to half a pixel, and a bf16 change of z would add jitter."""
    network = small_components(guess_channels=(8, 8, 8)).unet.guess_network
    torch.manual_seed(0)
    torch.nn.init.normal_(network.displace.weight, std=0.2)
    exact, low = both(network)
    stripes = (torch.arange(512) // 8 % 2 * 2.0 - 1).expand(1, 3, 512, 512)
    change = 0.3 * torch.randn(1, 32)
    with torch.no_grad():
        wanted = exact(stripes, mean_landmarks(1), change)
        found = low(stripes.to(BF16), mean_landmarks(1), change)
        assert (wanted - stripes).abs().mean() > 0.1
        assert torch.equal(low.moved(mean_landmarks(1), change), exact.moved(mean_landmarks(1), change))
    assert found.dtype == BF16
    # What is left are rounded colours, and covers from networks in bf16.
    assert (found.float() - wanted).abs().max() < 0.05


def test_attention_with_a_locality_looks_at_the_same_places_as_in_float32():
    """Squared distances across a plane of 64 x 64 tokens, nearly 2,000, are wrong by several units in bf16."""
    locality = Locality(2, 8, 1.6)
    tokens = torch.zeros(1, 64 * 64, 8, dtype=BF16)
    queries, keys = locality.to(BF16)(tokens, 64 * 64)
    assert queries.dtype == keys.dtype == torch.float32
    logits = queries[0, 0, :64] @ keys.T
    split = [columns.float() for columns in _split_columns(queries[0, 0, :64], keys, BF16)]
    assert ((split[0] @ split[1].T) - logits).abs().max() < 0.05
    rounded = queries[0, 0, :64].to(BF16).float() @ keys.to(BF16).float().T
    assert (rounded - logits).abs().max() > 2


def test_pictures_are_rounded_once():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256).permute(1, 2, 0)
    exact = to_model(levels, torch.device("cpu"), torch.float32)
    assert torch.equal(to_model(levels, torch.device("cpu"), BF16), exact.to(BF16))


# --- noise levels -------------------------------------------------------------------------------------------------


def test_a_prediction_at_the_smallest_noise_level_is_that_of_float32():
    """1 - a^2 is 0.00085 there, and 0 in bf16."""
    components = without_zero_weights(small_components())
    unet, low = both(components.unet.eval())
    generator = torch.Generator().manual_seed(0)
    clean, eps = (torch.randn(1, 1, 8, 16, 16, generator=generator) for _ in range(2))
    level: Any = torch.tensor([0])
    noisy = components.scheduler.add_noise(clean, eps, level)
    guess = clean + 0.25 * torch.randn(clean.shape, generator=generator)
    z, keep = torch.zeros(1, 1, 32), torch.ones(1)
    features = components.reference_unet.features(clean[:, 0])
    with torch.no_grad():
        wanted = predict(unet, components.scheduler, noisy, level, z, keep, features, guess)
        features = {name: f.to(BF16) for name, f in features.items()}
        found = predict(low, components.scheduler, noisy, level, z, keep, features, guess)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("phase", ["vae", "motion", "frames", "temporal"])
def test_the_loss_of_stage_1_is_that_of_float32(phase):
    components = without_zero_weights(small_components())
    objective, low = both(RenderObjective(**vars(components), train_vae=True))
    seen = []
    for model in (objective, low):
        model.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (2, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    tracks = FaceTracks(controls=torch.rand(2, 5, 57, generator=generator))
    batch = frames, frames[:, 0], torch.ones(2), [(0, i) for i in range(2)], phase, tracks
    wanted, found = objective(*batch), low(*batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    assert {noisy.dtype for noisy in seen} <= {torch.float32}
    found.backward()


def test_rendered_frames_are_nearly_those_of_float32():
    """The output of an untrained UNet is zero, so the frames follow from the guess and the noise levels alone."""
    components = small_components()
    frames = []
    for dtype in (torch.float32, BF16):
        renderer = Renderer(**vars(components)).to("cpu", BF16).to("cpu", dtype)
        picture = (torch.arange(32 * 32 * 3) % 251).reshape(32, 32, 3).to(torch.uint8).numpy()
        reference = renderer.reference(picture)
        assert reference.z.dtype == torch.float32
        z = reference.z + 0.1 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        config = RenderConfig(steps=8, cfg=1.5, window_frames=4, overlap_frames=0)
        frames.append(renderer.window(reference, z, seed=0, first_frame=0, config=config))
    difference = torch.from_numpy(frames[0]).int() - torch.from_numpy(frames[1]).int()
    assert difference.float().abs().mean() < 1
    assert difference.abs().max() < 6


# --- statistics and angles ----------------------------------------------------------------------------------------


def test_a_motion_model_in_bf16_keeps_its_statistics_and_the_angles_of_positions(tmp_path):
    model: Any = small_model()
    mean, std = torch.linspace(-3, 3, 32), torch.linspace(0.001, 3, 32)
    model.set_latent_statistics(mean, std)
    frequencies = model.backbone.rotary_emb.inv_freq.clone()
    model.save_pretrained(tmp_path / "motion")
    MotionScheduler().save_pretrained(tmp_path / "motion_scheduler")
    for low in (load_motion_model(tmp_path, dtype=BF16), copy.deepcopy(model).to(BF16), model.bfloat16()):
        assert {p.dtype for p in low.parameters()} == {BF16}
        assert torch.equal(low.latent_mean, mean)
        assert torch.equal(low.latent_std, std)
        assert torch.equal(low.backbone.rotary_emb.inv_freq, frequencies)
        z = torch.randn(5, 32)
        torch.testing.assert_close(low.destandardise(low.standardise(z)), z)
    again = model.float()
    assert torch.equal(again.latent_mean, mean)


# --- kernels that CPUs lack ---------------------------------------------------------------------------------------


def test_a_motion_encoder_in_bf16_resizes_on_a_cpu():
    torch.manual_seed(0)
    encoder, low = both(MotionEncoder(image_size=64, channels=(8, 16, 16), latent_dim=32))
    pictures = F.interpolate(torch.rand(2, 3, 16, 16) * 2 - 1, (512, 512), mode="bicubic")
    with torch.no_grad():
        wanted, found = encoder(pictures)[0], low(pictures.to(BF16))[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("phase", ["frames", "temporal"])
def test_a_renderer_from_published_weights_trains_in_bf16_on_a_cpu(tmp_path, phase):
    folder = published(tmp_path)
    components = published_components(folder / "sd15", animatediff=folder / "animatediff")
    objective = RenderObjective(**vars(components)).to(BF16).train()
    frames = torch.randint(0, 255, (1, 2, 16, 16, 3), dtype=torch.uint8)
    loss = objective(frames, frames[:, 0], torch.ones(1), [(0, 0)], phase)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.any() for p in objective.motion_encoder.parameters())
