"""Test the renderer: its windows, its components with random weights, and the published layouts that it reads."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from render_models import mean_landmarks, small_components, without_zero_weights

from xactor.render import (
    Blend,
    MotionEncoder,
    RenderConfig,
    Renderer,
    Window,
    render_windows,
)
from xactor.render.attention import Locality
from xactor.render.autoencoder import decode, encode
from xactor.render.frames import from_model
from xactor.render.prediction import predict
from xactor.render.windows import windows_of

SMALL = RenderConfig(steps=2, window_frames=6, overlap_frames=2)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(**vars(without_zero_weights(small_components())))


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.randn(13, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 7, 10, 11, 12, 23])
@pytest.mark.parametrize("at_once", [1, 4, 50])
@pytest.mark.parametrize("lead_frames", [0, 6])
def test_windows_do_not_depend_on_how_latents_arrive(frames, at_once, lead_frames):
    z = torch.arange(-lead_frames, frames, dtype=torch.float32)[:, None]
    found = list(windows_of(z.split(at_once), SMALL, torch.cat, lead_frames=lead_frames))
    assert [(first, first + len(own)) for first, own, _ in found] == render_windows(frames, SMALL)
    assert all(own[0, 0] == first and origin[0] == -lead_frames for first, own, origin in found)


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7, 10, 11, 12, 23])
def test_blended_windows_equal_the_whole_video(frames):
    blend, out = Blend(SMALL), []
    video = np.random.default_rng(frames).integers(0, 255, (frames, 2, 2, 3), dtype=np.uint8)
    for first, end in render_windows(frames, SMALL):
        out += list(blend.add(video[first:end]))
    out += list(blend.rest())
    np.testing.assert_array_equal(np.stack(out), video)


def test_an_overlap_fades_from_one_window_to_the_next():
    blend = Blend(RenderConfig(window_frames=4, overlap_frames=2))
    first = list(blend.add(np.full((4, 1, 1, 3), 0, np.uint8)))
    second = list(blend.add(np.full((4, 1, 1, 3), 90, np.uint8)))
    levels = [int(frame[0, 0, 0]) for frame in first + second + list(blend.rest())]
    assert levels == [0, 0, 30, 60, 90, 90]


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_batched_windows_equal_each_alone(renderer, portrait, z, cfg):
    config = RenderConfig(steps=2, cfg=cfg, window_frames=6, overlap_frames=2)
    windows = [
        Window(reference=renderer.reference(picture), z=z[at : at + 5], seed=at, first_frame=2 * at)
        for at, picture in enumerate((portrait, portrait[::-1].copy(), portrait[:, ::-1].copy()))
    ]
    together = renderer.windows(windows, config)
    for window, frames in zip(windows, together, strict=True):
        own = renderer.windows([window], config)[0]
        assert np.abs(own.astype(int) - frames).max() <= 1, "only rounding may differ"
    with pytest.raises(ValueError, match=r"alike in length, got \[3, 5\]"):
        renderer.windows([windows[0], replace(windows[1], z=z[:3])], config)


def test_a_window_depends_only_on_itself(renderer, portrait, z):
    reference = renderer.reference(portrait)
    video = list(renderer.render(reference, z, seed=3, config=SMALL))
    assert len(video) == 13
    again = list(renderer.render(reference, z.split(5), seed=3, config=SMALL))
    np.testing.assert_array_equal(np.stack(video), np.stack(again))
    window = Window(reference=reference, z=z[4:10], seed=3, first_frame=4, origin=z[0])
    [second] = renderer.windows([window], SMALL)
    np.testing.assert_array_equal(np.stack(video[6:8]), second[2:4])  # the frames that no neighbour shares
    [other] = renderer.windows([replace(window, seed=4)], SMALL)
    assert (other != second).any()


def test_a_performance_starts_from_the_unmoved_portrait(renderer, portrait, z):
    """Only the change of the latents since the first frame counts, so latents of another person act alike."""
    reference = renderer.reference(portrait)
    video = np.stack(list(renderer.render(reference, z, seed=3, config=SMALL))).astype(int)
    of_another = np.stack(list(renderer.render(reference, z + 2.0, seed=3, config=SMALL)))
    assert np.abs(video - of_another).max() <= 1
    from_portrait = torch.cat([reference.z, reference.z + z[1:6] - z[0]])
    window = renderer.window(reference, from_portrait, seed=3, first_frame=0, config=SMALL)
    assert np.abs(video[:4] - window[:4]).max() <= 1
    without_portrait = renderer.window(reference, z[:6], seed=3, first_frame=0, config=SMALL)
    assert np.abs(video[:4] - without_portrait[:4]).max() > 1


def test_without_relative_motion_the_latents_are_used_as_they_are(renderer, portrait, z):
    config = replace(SMALL, relative_motion=False)
    reference = renderer.reference(portrait)
    video = np.stack(list(renderer.render(reference, z, seed=3, config=config)))
    window = renderer.window(reference, z[:6], seed=3, first_frame=0, config=SMALL)
    np.testing.assert_array_equal(video[:4], window[:4])


def test_a_renderer_without_a_guess_renders_and_loads(portrait, z, tmp_path):
    without = Renderer(**vars(without_zero_weights(small_components(guess_channels=None))))
    video = np.stack(list(without.render(without.reference(portrait), z, seed=3, config=SMALL)))
    assert video.std() > 1
    without.save_pretrained(tmp_path)
    loaded = Renderer.from_pretrained(tmp_path)
    again = np.stack(list(loaded.render(loaded.reference(portrait), z, seed=3, config=SMALL)))
    np.testing.assert_array_equal(video, again)


def test_motion_time_and_reference_have_an_effect(renderer, portrait, z):
    reference = renderer.reference(portrait)

    def window(z, reference=reference, **options):
        config = RenderConfig(steps=2, window_frames=6, overlap_frames=2, **options)
        return renderer.window(reference, z, seed=0, first_frame=0, config=config).astype(int)

    plain = window(z[:6])
    assert (window(z[6:12]) != plain).any()
    assert (window(z[:6], renderer.reference(255 - portrait)) != plain).any()
    assert (window(z[:6], cfg=1) != plain).any()
    late = torch.cat([z[:5], z[12:13]])
    assert (window(late)[0] != plain[0]).any()  # the first frame depends on the last


def test_components_load_as_they_were_saved(renderer, portrait, z, tmp_path):
    renderer.save_pretrained(tmp_path)
    loaded = Renderer.from_pretrained(tmp_path)
    one, two = (
        r.window(r.reference(portrait), z[:6], seed=0, first_frame=0, config=SMALL)
        for r in (renderer, loaded)
    )
    np.testing.assert_array_equal(one, two)
    frames = np.stack([portrait, 255 - portrait])
    torch.testing.assert_close(
        loaded.components.motion_encoder.encode(frames), renderer.components.motion_encoder.encode(frames)
    )
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vae in .*config\.json is missing"):
        Renderer.from_pretrained(tmp_path)


def test_unfit_input_is_named(renderer, portrait, z):
    reference = renderer.reference(portrait)
    with pytest.raises(ValueError, match=r"must be uint8 \[32, 32, 3\], got uint8 \[16, 16, 3\]"):
        renderer.reference(portrait[:16, :16])
    with pytest.raises(ValueError, match=r"z must be \[frames, 32\].*\[6, 31\]"):
        renderer.window(reference, z[:6, :31], seed=0, first_frame=0, config=SMALL)
    with pytest.raises(ValueError, match=r"1\.\.6 frames, got 7"):
        renderer.window(reference, z[:7], seed=0, first_frame=0, config=SMALL)
    with pytest.raises(ValueError, match="NaN"):
        renderer.window(reference, z[:6] * float("nan"), seed=0, first_frame=0, config=SMALL)
    with pytest.raises(ValueError, match="window_frames must be <= 32 for this renderer, got 40"):
        renderer.window(reference, z[:6], seed=0, first_frame=0, config=RenderConfig(window_frames=40))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": -1}, r"0\.\.1000, got -1"),
        ({"cfg": 0.5}, r"1\.\.20, got 0\.5"),
        ({"overlap_frames": 9}, r"0\.\.8, half of window_frames, got 9"),
        ({"window_frames": 0}, "window_frames must be >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        RenderConfig(**options)


def test_a_vae_from_random_weights_is_a_cosine_transform_that_keeps_differences():
    """Differences of latents are as large as those of pictures, up to the share of the omitted coefficients."""
    vae = small_components().vae
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(4, 3, 4, 4, generator=generator), (32, 32), mode="bicubic").clamp(
        -1, 1
    )
    with torch.no_grad():
        latents, decoded = encode(vae, smooth), decode(vae, encode(vae, smooth))
    energy = (smooth[0] - smooth[1]).square().sum()
    assert 0.95 < (latents[0] - latents[1]).square().sum() / energy < 1.0
    # The first coefficient is the block's mean brightness, as in scipy's transform.
    grey = smooth.sum(1, keepdim=True) / 3**0.5
    torch.testing.assert_close(latents[:, :1], F.avg_pool2d(grey, 2) * 2, rtol=0.01, atol=0.01)
    coarse = F.interpolate(F.avg_pool2d(smooth, 2), scale_factor=2.0)
    assert (decoded - coarse).abs().mean() < 0.1
    assert (decoded - smooth.flip(0)).abs().mean() > 0.1
    with pytest.raises(ValueError, match=r"needs blocks of at least \(12, 32\) channels, got \(8, 16\)"):
        small_components(vae_channels=(8, 16))


def test_locality_attends_to_the_place_it_looks_at():
    """Attention equals softmax(-fall |p - k|^2), with p moved by `look`."""
    local = Locality(2, 6, 1.5)
    torch.nn.init.normal_(local.look.bias)
    tokens = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        of_queries, of_keys = local(tokens, 4)
        found = (of_queries[0] @ of_keys.T).softmax(-1)  # [heads, 16, 4]
        moved = local.look.bias.view(2, 2)
        for head, fall in enumerate((1.5, 1.5 / 8)):
            for n, (y, x) in enumerate(itertools.product(range(4), range(4))):
                at = torch.tensor([(y - 1.5) / 2, (x - 1.5) / 2]) + moved[head]
                keys = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
                wanted = (-fall * (at - keys).square().sum(-1)).softmax(-1)
                torch.testing.assert_close(found[head, n], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [0, 300, 999])
def test_a_unet_that_outputs_zero_predicts_from_the_guess(step):
    """The prediction is the best one for latents that are normally distributed around the guess.

    The test compares it with a linear regression over many draws.
    """
    components = small_components()
    spread, count = components.unet.config["guess_spread"], 200_000
    generator = torch.Generator().manual_seed(0)
    signal = float(components.scheduler.alphas_cumprod[step])
    a, b = signal**0.5, (1 - signal) ** 0.5
    clean, eps = (
        0.7 + spread * torch.randn(count, generator=generator),
        torch.randn(count, generator=generator),
    )
    noisy, velocity = a * clean + b * eps, a * eps - b * clean

    class OutputZero:
        config = components.unet.config

        def __call__(self, noisy, *_):
            return torch.zeros_like(noisy)

    shape, levels, none = (count, 1, 1, 1, 1), torch.full((count,), step), torch.zeros(0)
    guess = torch.full(shape, 0.7)
    unet: Any = OutputZero()
    found = predict(unet, components.scheduler, noisy.view(shape), levels, none, none, {}, guess).flatten()
    slope, offset = np.polyfit(noisy.numpy(), velocity.numpy(), 1) if noisy.std() > 1e-3 else (0.0, 0.0)
    assert (found - (slope * noisy + offset)).abs().mean() < 0.005


def test_random_weights_render_the_portrait_moved_by_z():
    """One DDIM step of an untrained renderer gives the guess, which has not lost detail in the VAE."""
    renderer = Renderer(**vars(small_components()))
    torch.manual_seed(0)
    torch.nn.init.normal_(renderer.components.unet.guess_network.displace.weight, std=0.2)
    portrait = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    reference = renderer.reference(portrait)
    z = reference.z + torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    config = RenderConfig(steps=1, cfg=1.0, window_frames=2, overlap_frames=0)
    with torch.no_grad():
        moved = renderer.components.unet.guess_network(
            reference.picture.expand(2, -1, -1, -1), mean_landmarks(2), z - reference.z
        )
    wanted = from_model(moved)
    got = renderer.window(reference, z, seed=0, first_frame=0, config=config)
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 2
    assert np.abs(wanted[0].astype(int) - wanted[1].astype(int)).max() > 5


def test_no_steps_show_the_guess(renderer, portrait, z):
    reference = renderer.reference(portrait)
    config = RenderConfig(steps=0, relative_motion=False)
    video = np.stack(list(renderer.render(reference, z, seed=0, config=config)))
    with torch.no_grad():
        pictures = reference.picture.expand(len(z), -1, -1, -1)
        network = renderer.components.unet.guess_network
        wanted = from_model(network(pictures, mean_landmarks(len(z)), z - reference.z))
    assert np.abs(video.astype(int) - wanted.astype(int)).max() <= 1
    without = Renderer(**vars(small_components(guess_channels=None)))
    with pytest.raises(ValueError, match=r"render steps must be >= 1 for a renderer without a guess, got 0"):
        next(without.render(without.reference(portrait), z, seed=0, config=config))


def test_a_large_portrait_is_guessed_at_its_own_size(portrait, z):
    components = without_zero_weights(small_components(guess_scale=2))
    renderer = Renderer(**vars(components))
    assert (renderer.image_size, renderer.model_size) == (64, 32)
    blurred = Image.fromarray(portrait[:6, :6])
    portrait, large = (np.asarray(blurred.resize((s, s), Image.Resampling.BICUBIC)) for s in (32, 64))
    rendered = {}
    for picture in (portrait, large):
        for steps in (0, 1):
            config = RenderConfig(steps=steps, cfg=1)
            frames = list(renderer.render(renderer.reference(picture), z[:4], seed=0, config=config))
            rendered[len(picture), steps] = np.stack(frames).astype(float)
            assert frames[0].shape == picture.shape
    # Without steps, the first frame is the portrait, to the bit.
    assert np.array_equal(rendered[64, 0][0], large)
    # The UNet sees the reduced portrait, and its correction is enlarged.
    corrections = {side: rendered[side, 1] - rendered[side, 0] for side in (32, 64)}
    reduced = corrections[64].reshape(4, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(corrections[32]).mean() > 5
    assert np.corrcoef(reduced.ravel(), corrections[32].ravel())[0, 1] > 0.8


def test_the_encoder_accepts_pictures_of_any_size():
    encoder = MotionEncoder(image_size=32, channels=(8, 16, 16), latent_dim=32).eval()
    picture = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    large = picture.repeat(8, axis=1).repeat(8, axis=2)
    assert encoder.encode(large).shape == (2, 32)
    assert encoder.encode(large[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode(large.astype(np.float32))
    with pytest.raises(ValueError, match="image_size of at least 64.*got image_size 32"):
        MotionEncoder(image_size=32, channels=(8, 8, 8, 8))
