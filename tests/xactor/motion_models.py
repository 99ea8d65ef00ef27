"""Build small motion models for tests, in the layout of the real ones."""

import torch

from xactor.motion import MotionTransformer, MotionTransformerConfig

QWEN = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
SIZES = {
    "latent_dim": 32,
    "audio_layers": 2,
    "audio_dim": 10,
    "audio_width": 24,
    "chunk_frames": 8,
    "context_frames": 32,
}


def small_model(seed: int = 0, **changes) -> MotionTransformer:
    """Build a model with only random weights. Weights that start at zero would hide the layers that they multiply."""
    torch.manual_seed(seed)
    model = MotionTransformer(MotionTransformerConfig(backbone=dict(QWEN), **{**SIZES, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model
