"""Build whole pipelines for tests, from small components with random weights."""

import torch
from motion_models import small_model

from xactor.audio.encoder import LogMelEncoder
from xactor.motion import MotionScheduler
from xactor.pipeline import XActorPipeline
from xactor.render import random_components

LATENT_DIM = 32


def small_pipeline(**changes) -> XActorPipeline:
    """Build a pipeline. `changes` replace components."""
    components = random_components(
        image_size=64,
        channels=(32, 64),
        vae_channels=(16, 32, 48),
        encoder_channels=(16, 16, 32, 32),
        motion_tokens=4,
        motion_width=80,
        latent_dim=LATENT_DIM,
    )
    torch.manual_seed(1)
    for weight in components.unet.parameters():
        # Weights that start at zero would hide the motion and the time.
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    return XActorPipeline(
        **{
            "motion": small_model(latent_dim=LATENT_DIM, audio_layers=1, audio_dim=64),
            "motion_scheduler": MotionScheduler(),
            "audio_encoder": LogMelEncoder(mels=16),
            **vars(components),
            **changes,
        }
    )
