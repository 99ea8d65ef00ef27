"""Build the components of a renderer, from random weights at any size or from published weights."""

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

# Width of the motion latent z.
LATENT_DIM = 512
# Channels of the three levels of the guess network, in a renderer from random weights. The guess network moves the
# portrait to make a first version of a frame, the guess, which the UNet corrects.
GUESS_CHANNELS = (24, 48, 96)
# RMS difference between the VAE's latents of a frame and of its guess, measured on the demo corpus, whose latents have
# unit variance.
GUESS_SPREAD = 0.25
# Largest side, in latents, at which the blocks of a UNet from random weights have attention. On CPUs, attention between
# the 32 x 32 places of a frame and those of the reference would take most of the time.
_MAX_ATTENTION_SIDE = 16
# Without this option diffusers needs the package accelerate to load models, and nothing else here needs it.
_LOADING: Any = {"low_cpu_mem_usage": False}


@dataclass(frozen=True, kw_only=True)
class Components:
    """Hold the components of a renderer. Each is saved in a folder of its own name."""

    motion_encoder: MotionEncoder
    """E_mot: face crops to motion latents."""
    unet: RendererUNet
    """The UNet that denoises frames."""
    reference_unet: ReferenceUNet
    """The network that gives the features of the portrait."""
    vae: AutoencoderKL
    """The autoencoder that maps pictures to latents and back."""
    scheduler: DDIMScheduler
    """Noise schedule and prediction type."""


def ddim_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """Return a DDIM scheduler with SD1.5's noise schedule.

    With `v_prediction` the schedule is changed to zero terminal SNR. With `epsilon` it is not, because a prediction of
    the noise says nothing about the frame at a level of pure noise.
    """
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


def random_components(
    *,
    image_size: int = 64,
    channels: tuple[int, ...] = (48, 96),
    vae_channels: tuple[int, ...] = (16, 32, 64),
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128),
    encoder_size: int = 64,
    latent_channels: int = 12,
    layers_per_block: int = 1,
    heads: int = 2,
    motion_width: int = 96,
    motion_tokens: int = 16,
    latent_dim: int = LATENT_DIM,
    window_frames: int = 32,
    prediction_type: str = "v_prediction",
    guess_channels: tuple[int, ...] | None = GUESS_CHANNELS,
    guess_scale: int = 1,
    seed: int = 0,
) -> Components:
    """Return components of any size from random weights.

    Args:
        image_size: Side of the pictures in pixels: a multiple of 2^n, where n is the number of halvings in the VAE
            and the UNet together.
        channels: Channels of the UNet's blocks. Each block except the last halves the side of the latents.
        vae_channels: Channels of the VAE's blocks. Each block except the last halves a picture's side.
        encoder_channels: Channels of the motion encoder's blocks.
        encoder_size: Side of the pictures that the motion encoder sees, in pixels.
        latent_channels: Channels of the VAE's latents.
        layers_per_block: Layers of each of the UNet's blocks.
        heads: Attention heads.
        motion_width: Width of a motion token.
        motion_tokens: Number of motion tokens per frame, a square number.
        latent_dim: Width of z.
        window_frames: Maximum number of frames in a window.
        prediction_type: `v_prediction` or `epsilon`.
        guess_channels: Channels of the guess network's three levels; None means no guess.
        guess_scale: How many times larger than `image_size` the side of portraits and frames is.
        seed: Seed of the random weights.
    """
    shrink = 1 << (len(vae_channels) - 1 + len(channels) - 1)
    if image_size % shrink:
        raise ValueError(f"image_size must be a multiple of {shrink}, got {image_size}")
    torch.manual_seed(seed)
    corrects_guess = bool(guess_channels) and prediction_type == "v_prediction"
    groups = min(16, min(channels) // 4)
    widths: Any = vae_channels
    vae_blocks: Any = ("DownEncoderBlock2D",) * len(vae_channels), ("UpDecoderBlock2D",) * len(vae_channels)
    shape: dict[str, Any] = {
        "sample_size": image_size >> (len(vae_channels) - 1),
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": channels,
        "layers_per_block": layers_per_block,
        "norm_num_groups": groups,
    }
    attends = [shape["sample_size"] >> level <= _MAX_ATTENTION_SIDE for level in range(len(channels))]
    down = ["CrossAttnDownBlock" if yes else "DownBlock" for yes in attends]
    up = ["CrossAttnUpBlock" if yes else "UpBlock" for yes in reversed(attends)]
    components = Components(
        motion_encoder=MotionEncoder(
            image_size=encoder_size, channels=encoder_channels, latent_dim=latent_dim
        ),
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
            guess_channels=guess_channels,
            guess_spread=GUESS_SPREAD if corrects_guess else None,
            guess_scale=guess_scale,
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
            down_block_types=vae_blocks[0],
            up_block_types=vae_blocks[1],
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=min(vae_channels) // 4,
            scaling_factor=1.0,
        ),
        scheduler=ddim_scheduler(prediction_type),
    )
    start_as_cosines(components.vae)
    _pass_values_on(components.unet)
    # At first the UNet's output is zero, which leaves the guess as it is: see `predict`.
    if corrects_guess:
        nn.init.zeros_(components.unet.conv_out.weight)
        nn.init.zeros_(components.unet.conv_out.bias)  # pyright: ignore[reportArgumentType]
    # Both networks start from the same weights, as they do with published weights. So equal features of the frame and
    # of the reference match in attention.
    own = components.reference_unet.state_dict()
    components.reference_unet.load_state_dict(
        {n: w for n, w in components.unet.state_dict().items() if n in own}, strict=False
    )
    return components


def _pass_values_on(unet: RendererUNet) -> None:
    """Initialise the attentions of a UNet from random weights so that they pass values on at full strength.

    Only a UNet that is loaded with trained weights needs attentions that add little at first.
    """
    for _, block in spatial_blocks(unet):
        for attention in (block.attn1, block.attn2):
            for layer in (attention.to_v, attention.to_out[0]):
                nn.init.orthogonal_(layer.weight)


def published_components(
    sd15: str | Path,
    *,
    animatediff: str | Path | None = None,
    vae: str | Path | None = None,
    latent_dim: int = LATENT_DIM,
    motion_tokens: int = 16,
    window_frames: int = 32,
    prediction_type: str = "v_prediction",
    guess_channels: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Components:
    """Return components that start from published weights, read in their published formats.

    The weights of the text cross-attention of SD1.5's UNet are not used. The log lists them.

    Args:
        sd15: Folder of Stable Diffusion 1.5 (`unet/`, `vae/`).
        animatediff: Folder of AnimateDiff's motion adapter. Without it the temporal layers start from random weights.
        vae: Folder of another Stable Diffusion VAE; None means the one in `sd15`.
        latent_dim: Width of z.
        motion_tokens: Number of motion tokens per frame, a square number.
        window_frames: Maximum number of frames in a window, if there is no motion adapter. An adapter has its own.
        prediction_type: `v_prediction` or `epsilon`.
        guess_channels: Channels of the guess network's three levels; None means no guess.
        seed: Seed of the weights that no published model has.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The weights are of another architecture; the message names weights that differ.
    """
    torch.manual_seed(seed)
    plain = UNet2DConditionModel.from_pretrained(_folder(sd15, "unet"), **_LOADING)
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
    # SD1.5's config calls the number of heads attention_head_dim.
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    reference = ReferenceUNet(
        **shape,
        down_block_types=tuple(config["down_block_types"]),
        up_block_types=tuple(config["up_block_types"]),
        attention_head_dim=heads,
    )
    adapter = MotionAdapter.from_pretrained(_folder(animatediff), **_LOADING) if animatediff else None
    unet = RendererUNet(
        **shape,
        down_block_types=tuple(_temporal_type(name) for name in config["down_block_types"]),
        up_block_types=tuple(_temporal_type(name) for name in config["up_block_types"]),
        cross_attention_dim=config["cross_attention_dim"],
        num_attention_heads=heads,
        motion_num_attention_heads=adapter.config["motion_num_attention_heads"] if adapter else heads,
        motion_max_seq_length=adapter.config["motion_max_seq_length"] if adapter else window_frames,
        use_motion_mid_block=adapter.config["use_motion_mid_block"] if adapter else True,
        latent_dim=latent_dim,
        motion_tokens=motion_tokens,
        guess_channels=guess_channels,
    )
    weights = plain.state_dict()
    _load(reference, weights, f"{sd15}/unet", new=())
    _load(unet, weights, f"{sd15}/unet", new=("attn2", "motion_", "null_motion", "guess"))
    if adapter:
        unet.load_motion_modules(adapter)
    autoencoder = AutoencoderKL.from_pretrained(_folder(vae) if vae else _folder(sd15, "vae"), **_LOADING)
    return Components(
        motion_encoder=MotionEncoder(latent_dim=latent_dim),
        unet=unet,
        reference_unet=reference,
        vae=autoencoder,
        scheduler=ddim_scheduler(prediction_type),
    )


def _temporal_type(name: str) -> str:
    """Return the type of a UNet block with temporal layers, given the type of the block without them."""
    return name.replace("2D", "Motion")


def _folder(*path: str | Path) -> str:
    """Return a folder of weights. Raises FileNotFoundError if it has no config.json."""
    folder = Path(*path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no weights in {folder}: config.json is missing")
    return str(folder)


def _load(model: nn.Module, weights: dict[str, torch.Tensor], source: str, *, new: tuple[str, ...]) -> None:
    """Load published weights into a model, without those of the text cross-attention. Log the names of the latter.

    Args:
        model: The model.
        weights: The published weights by name.
        source: Folder of the weights, for messages.
        new: Substrings of the names of the model's weights that the published model does not have.

    Raises:
        ValueError: Other weights of the model are missing, or published weights have no place in the model.
    """
    own = model.state_dict()
    # ReferenceUNet also lacks the norm before the text cross-attention.
    dropped = {name for name in weights if ".attn2." in name or (name not in own and ".norm2." in name)}
    foreign = [n for n in weights if n not in dropped and (n not in own or own[n].shape != weights[n].shape)]
    missing = [n for n in own if n not in weights and not any(name in n for name in new)]
    if foreign or missing:
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: {len(foreign)} foreign weights {foreign[:3]}, "
            f"{len(missing)} missing {missing[:3]}"
        )
    model.load_state_dict({n: w for n, w in weights.items() if n not in dropped}, strict=False)
    _log.info(
        "%s: dropped %d weights of the text cross-attention: %s",
        source,
        len(dropped),
        ", ".join(sorted(dropped)),
    )
