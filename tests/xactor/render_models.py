"""Build small renderers for tests."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter

from xactor.faces.landmarks import MEAN_LANDMARKS
from xactor.render import Components, random_components


def small_components(**options) -> Components:
    """Return components for pictures of 32 px, with random weights."""
    sizes = {
        "image_size": 32,
        "channels": (16, 32),
        "vae_channels": (16, 32),
        "latent_channels": 8,
        "encoder_channels": (8, 16, 16),
        "encoder_size": 32,
        "guess_channels": (8, 16, 16),
    }
    return random_components(**{**sizes, **options}, motion_width=80, motion_tokens=4, latent_dim=32)


def without_zero_weights(components: Components) -> Components:
    """Replace the weights that start at zero by random ones, so that motion and time have an effect in a test."""
    torch.manual_seed(1)
    for parameter in [*components.unet.parameters(), *components.vae.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return components


def mean_landmarks(count: int) -> torch.Tensor:
    """Return the landmarks of an average face, float32 [count, K, 2]."""
    return torch.from_numpy(MEAN_LANDMARKS).expand(count, -1, -1)


def published(folder: Path) -> Path:
    """Write weights in the layouts of Stable Diffusion 1.5 and of AnimateDiff's adapter, at a small size."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=80,
        attention_head_dim=2,
        norm_num_groups=8,
    ).save_pretrained(folder / "sd15" / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "sd15" / "vae")
    MotionAdapter(
        block_out_channels=(16, 32, 32, 32),
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    ).save_pretrained(folder / "animatediff")
    return folder
