"""The renderer's parts: random ones of any size, and those that grow out of published weights."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

from xactor.render.attention import spatial_blocks
from xactor.render.autoencoder import start_as_cosines
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet

_log = logging.getLogger(__name__)

LATENT_DIM = 512
GUESS_SPREAD = 0.25  # as measured of the demo corpus, whose latents have unit variance
_PLAINLY: Any = {"low_cpu_mem_usage": False}  # the other way needs a package that nothing else here does


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a renderer is made of, each saved under its own name."""

    motion_encoder: MotionEncoder
    unet: RendererUNet
    reference_unet: ReferenceUNet
    vae: AutoencoderKL
    scheduler: DDIMScheduler


def ddim_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """SD1.5's noise schedule, with zero terminal SNR where the prediction allows it (v, not epsilon)."""
    if prediction_type not in ("v_prediction", "epsilon"):
        raise ValueError(f"prediction_type must be v_prediction or epsilon, got {prediction_type!r}")
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=prediction_type == "v_prediction",
    )


def random_parts(
    *,
    image_size: int = 64,
    channels: tuple[int, ...] = (48, 96),
    vae_channels: tuple[int, ...] = (16, 32, 64),
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128),
    latent_channels: int = 12,
    layers_per_block: int = 1,
    heads: int = 2,
    motion_width: int = 96,
    motion_tokens: int = 16,
    latent_dim: int = LATENT_DIM,
    window_frames: int = 32,
    prediction_type: str = "v_prediction",
    seed: int = 0,
) -> Parts:
    """The architecture at any size, from nothing. Each stage of the VAE but the last halves a picture's side."""
    shrink = 1 << (len(vae_channels) - 1 + len(channels) - 1)
    if image_size % shrink:
        raise ValueError(f"image_size must be a multiple of {shrink}, got {image_size}")
    torch.manual_seed(seed)
    groups = min(16, min(channels) // 4)
    widths: Any = vae_channels
    vae_stages: Any = ("DownEncoderBlock2D",) * len(vae_channels), ("UpDecoderBlock2D",) * len(vae_channels)
    shape: dict[str, Any] = {
        "sample_size": image_size >> (len(vae_channels) - 1),
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": channels,
        "layers_per_block": layers_per_block,
        "norm_num_groups": groups,
    }
    down, up = ["CrossAttnDownBlock"] * len(channels), ["CrossAttnUpBlock"] * len(channels)
    parts = Parts(
        motion_encoder=MotionEncoder(image_size=image_size, channels=encoder_channels, latent_dim=latent_dim),
        unet=RendererUNet(
            **shape,
            down_block_types=tuple(f"{name}Motion" for name in down),
            up_block_types=tuple(f"{name}Motion" for name in up),
            cross_attention_dim=motion_width,
            num_attention_heads=heads,
            motion_num_attention_heads=heads,
            motion_max_seq_length=window_frames,
            latent_dim=latent_dim,
            motion_tokens=motion_tokens,
            locality=1.6,
            guess_spread=GUESS_SPREAD if prediction_type == "v_prediction" else None,
        ),
        reference_unet=ReferenceUNet(
            **shape,
            down_block_types=tuple(f"{name}2D" for name in down),
            up_block_types=tuple(f"{name}2D" for name in up),
            attention_head_dim=heads,
        ),
        vae=AutoencoderKL(
            sample_size=image_size,
            block_out_channels=widths,
            down_block_types=vae_stages[0],
            up_block_types=vae_stages[1],
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=min(vae_channels) // 4,
            scaling_factor=1.0,
        ),
        scheduler=ddim_scheduler(prediction_type),
    )
    start_as_cosines(parts.vae)
    _start_open(parts.unet)
    if prediction_type == "v_prediction":  # it begins by saying that the guess lacks nothing
        nn.init.zeros_(parts.unet.conv_out.weight)
        nn.init.zeros_(parts.unet.conv_out.bias)  # pyright: ignore[reportArgumentType]
    # Both start from the same weights, as they do from published ones: so that like finds like.
    own = parts.reference_unet.state_dict()
    parts.reference_unet.load_state_dict(
        {n: w for n, w in parts.unet.state_dict().items() if n in own}, strict=False
    )
    return parts


def _start_open(unet: RendererUNet) -> None:
    """Attention hands on what it hears at full strength: where nothing was learned, nothing is to be protected."""
    for _, block in spatial_blocks(unet):
        for attention in (block.attn1, block.attn2):
            for layer in (attention.to_v, attention.to_out[0]):
                nn.init.orthogonal_(layer.weight)


def published_parts(
    sd15: str | Path,
    *,
    animatediff: str | Path | None = None,
    vae: str | Path | None = None,
    latent_dim: int = LATENT_DIM,
    motion_tokens: int = 16,
    window_frames: int = 32,
    prediction_type: str = "v_prediction",
    seed: int = 0,
) -> Parts:
    """Parts that start from published weights, each in its own layout.

    Args:
        sd15: a folder of Stable Diffusion 1.5 (`unet/`, `vae/`).
        animatediff: a folder of AnimateDiff's motion adapter; temporal layers start random where it is not given.
        vae: a folder of another SD VAE.

    What SD1.5's UNet has and these do not, its text cross-attention, is dropped and listed in the log.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: weights of another architecture, with the names that differ.
    """
    torch.manual_seed(seed)
    plain = UNet2DConditionModel.from_pretrained(_folder(sd15, "unet"), **_PLAINLY)
    config = dict(plain.config)
    shape: dict[str, Any] = {
        name: config[name]
        for name in (
            "sample_size",
            "in_channels",
            "out_channels",
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
        )
    }
    heads = (
        config["num_attention_heads"] or config["attention_head_dim"]
    )  # SD1.5's config means heads by the latter
    reference = ReferenceUNet(
        **shape,
        down_block_types=tuple(config["down_block_types"]),
        up_block_types=tuple(config["up_block_types"]),
        attention_head_dim=heads,
    )
    adapter = MotionAdapter.from_pretrained(_folder(animatediff), **_PLAINLY) if animatediff else None
    unet = RendererUNet(
        **shape,
        down_block_types=tuple(_over_time(name) for name in config["down_block_types"]),
        up_block_types=tuple(_over_time(name) for name in config["up_block_types"]),
        cross_attention_dim=config["cross_attention_dim"],
        num_attention_heads=heads,
        motion_num_attention_heads=adapter.config["motion_num_attention_heads"] if adapter else heads,
        motion_max_seq_length=adapter.config["motion_max_seq_length"] if adapter else window_frames,
        use_motion_mid_block=adapter.config["use_motion_mid_block"] if adapter else True,
        latent_dim=latent_dim,
        motion_tokens=motion_tokens,
    )
    weights = plain.state_dict()
    _load(reference, weights, f"{sd15}/unet", new=())
    _load(unet, weights, f"{sd15}/unet", new=("attn2", "motion_", "null_motion", "conv_in.guess"))
    if adapter:
        unet.load_motion_modules(adapter)
    autoencoder = AutoencoderKL.from_pretrained(_folder(vae) if vae else _folder(sd15, "vae"), **_PLAINLY)
    return Parts(
        motion_encoder=MotionEncoder(latent_dim=latent_dim),
        unet=unet,
        reference_unet=reference,
        vae=autoencoder,
        scheduler=ddim_scheduler(prediction_type),
    )


def _over_time(name: str) -> str:
    return name.replace("2D", "Motion")


def _folder(*parts: str | Path) -> str:
    folder = Path(*parts)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no weights in {folder}: config.json is missing")
    return str(folder)


def _load(model: nn.Module, weights: dict[str, torch.Tensor], source: str, *, new: tuple[str, ...]) -> None:
    """Loads what fits, except the text cross-attention; lists what is dropped and refuses what is missing."""
    own = model.state_dict()
    text = {name for name in weights if ".attn2." in name or (name not in own and ".norm2." in name)}
    foreign = [n for n in weights if n not in text and (n not in own or own[n].shape != weights[n].shape)]
    missing = [n for n in own if n not in weights and not any(part in n for part in new)]
    if foreign or missing:
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: {len(foreign)} foreign weights {foreign[:3]}, "
            f"{len(missing)} missing {missing[:3]}"
        )
    model.load_state_dict({n: w for n, w in weights.items() if n not in text}, strict=False)
    _log.info(
        "%s: dropped %d weights of the text cross-attention: %s", source, len(text), ", ".join(sorted(text))
    )
