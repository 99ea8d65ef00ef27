"""A portrait's features and motion latents to frames: windows that stand for themselves, blended where they overlap.

A window's frames depend on the reference, its own latents, the seed and its absolute frame numbers alone. So windows
may be rendered anywhere, in any order, and again after a failure; and a video of any length needs the memory of two.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from xactor.randomness import into_own_memory, keyed_generator
from xactor.render.attention import ReferenceFeatures
from xactor.render.autoencoder import decode, encode
from xactor.render.frames import from_model, to_model
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.parts import Parts
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet

_DECODE_SLICE = 4  # frames that the VAE decodes together: at 512 px its activations outweigh the UNet's


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """
    steps: of DDIM, 25 the paper's. cfg: guidance on the motion, 2.5 the paper's; 1 is none.
    window_frames: how many frames are denoised together. overlap_frames: how many of them two neighbours share.
    """

    steps: int = 25
    cfg: float = 2.5
    window_frames: int = 16
    overlap_frames: int = 4

    def __post_init__(self):
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"render steps must be within 1..1000, got {self.steps}")
        if not 1 <= self.cfg <= 20:
            raise ValueError(f"render cfg must be within 1..20, got {self.cfg:g}")
        if self.window_frames < 1:
            raise ValueError(f"window_frames must be >= 1, got {self.window_frames}")
        if not 0 <= self.overlap_frames <= self.window_frames // 2:
            raise ValueError(
                f"overlap_frames must be within 0..{self.window_frames // 2}, half of window_frames, "
                f"got {self.overlap_frames}"
            )

    @property
    def stride(self) -> int:
        """Frames from one window's start to the next's."""
        return self.window_frames - self.overlap_frames


def render_windows(frames: int, config: RenderConfig) -> list[tuple[int, int]]:
    """The windows of a video of so many frames, as (first, end): each begins a stride after the one before it."""
    starts = range(0, max(frames - config.overlap_frames, 1), config.stride)
    return [(start, min(start + config.window_frames, frames)) for start in starts] if frames else []


class Renderer:
    """Renders with the parts of stage 1.

    Args:
        motion_encoder, unet, reference_unet, vae, scheduler: as saved by the training of stage 1.
    """

    def __init__(
        self,
        motion_encoder: MotionEncoder,
        unet: RendererUNet,
        reference_unet: ReferenceUNet,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
    ):
        self.parts = Parts(
            motion_encoder=motion_encoder,
            unet=unet,
            reference_unet=reference_unet,
            vae=vae,
            scheduler=scheduler,
        )
        for part in (motion_encoder, unet, reference_unet, vae):
            part.eval()
        shrink = 1 << (len(vae.config["block_out_channels"]) - 1)
        self.image_size = int(unet.config["sample_size"]) * shrink
        self.latent_dim = int(unet.config["latent_dim"])
        self.longest_window = int(unet.config["motion_max_seq_length"])

    @property
    def device(self) -> torch.device:
        return self.parts.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.unet.dtype

    @torch.no_grad()
    def reference(self, image: np.ndarray) -> ReferenceFeatures:
        """The features of a portrait uint8 [S, S, 3], S = image_size: once a portrait, for all of its windows."""
        if image.shape != (self.image_size, self.image_size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"the portrait must be uint8 [{self.image_size}, {self.image_size}, 3], "
                f"got {image.dtype} {list(image.shape)}"
            )
        vae = self.parts.vae
        latents = encode(vae, to_model(image[None], vae.device, vae.dtype))
        return self.parts.reference_unet.features(latents.to(self.dtype))

    @torch.no_grad()
    def window(
        self,
        reference: ReferenceFeatures,
        z: Tensor,
        *,
        seed: int,
        first_frame: int,
        config: RenderConfig | None = None,
    ) -> np.ndarray:
        """One window's frames, uint8 [W, S, S, 3], from its motion latents [W, latent_dim].

        `first_frame` is the number of its first frame in the whole video: noise is keyed by it.
        """
        config = config or RenderConfig()
        self._check(z, config)
        unet, size = self.parts.unet, int(self.parts.unet.config["sample_size"])
        shape = (int(unet.config["in_channels"]), size, size)
        noise = [
            torch.randn(shape, generator=keyed_generator(seed, "render", frame))
            for frame in range(first_frame, first_frame + len(z))
        ]
        x = torch.stack(noise).to(self.device, self.dtype)[None]  # [1, W, 4, h, w]
        branches = 2 if config.cfg > 1 else 1  # with motion, and without
        keep = torch.tensor([1, 0][:branches], device=self.device)
        z = z.to(self.device, self.dtype).expand(branches, *z.shape)
        features = {name: f.expand(branches, *f.shape[1:]) for name, f in reference.items()}
        scheduler = copy.deepcopy(
            self.parts.scheduler
        )  # its timesteps are state, and windows may run side by side
        scheduler.set_timesteps(config.steps)
        for level in scheduler.timesteps.tolist():
            levels = torch.full((branches,), level, device=self.device)
            out = unet(x.expand(branches, *x.shape[1:]), levels, z, keep, features)
            guided = out[:1] if branches == 1 else out[1:] + config.cfg * (out[:1] - out[1:])
            x = scheduler.step(guided, level, x, eta=0.0, return_dict=False)[0]
        return self._decode(x[0])

    def render(
        self,
        reference: ReferenceFeatures,
        z: Tensor | Iterable[Tensor],
        *,
        seed: int,
        config: RenderConfig | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames uint8 [S, S, 3], one after another, of latents [T, latent_dim] or of pieces [n, latent_dim] of them.

        A window is rendered as soon as its latents are there; two windows are the most that is held.
        """
        config = config or RenderConfig()
        blend = Blend(config)
        for first, part in windows_of([z] if isinstance(z, Tensor) else z, config):
            yield from blend.add(self.window(reference, part, seed=seed, first_frame=first, config=config))
        yield from blend.rest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Each part into its own folder: motion_encoder/, unet/, reference_unet/, vae/, scheduler/."""
        for name, part in vars(self.parts).items():
            part.save_pretrained(Path(folder) / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Renderer":
        """FileNotFoundError names a part that is not there."""
        classes = {
            "motion_encoder": MotionEncoder,
            "unet": RendererUNet,
            "reference_unet": ReferenceUNet,
            "vae": AutoencoderKL,
            "scheduler": DDIMScheduler,
        }
        parts = {}
        for name, part in classes.items():
            config = Path(folder) / name / part.config_name
            if not config.is_file():
                raise FileNotFoundError(f"no {name} in {folder}: {name}/{part.config_name} is missing")
            options: dict[str, Any] = {} if part is DDIMScheduler else {"low_cpu_mem_usage": False}
            parts[name] = part.from_pretrained(str(config.parent), **options)
            if isinstance(parts[name], nn.Module):
                into_own_memory(parts[name])
        return cls(**parts)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Renderer":
        """Moves the models, in place."""
        for part in (self.parts.motion_encoder, self.parts.unet, self.parts.reference_unet, self.parts.vae):
            part.to(device=device, dtype=dtype)  # pyright: ignore
        return self

    def _check(self, z: Tensor, config: RenderConfig) -> None:
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must be [frames, {self.latent_dim}] for this renderer, got {list(z.shape)}")
        if not 1 <= len(z) <= config.window_frames:
            raise ValueError(f"a window holds 1..{config.window_frames} frames, got {len(z)}")
        if config.window_frames > self.longest_window:
            raise ValueError(
                f"window_frames must be <= {self.longest_window} for this renderer, got {config.window_frames}"
            )
        if not torch.isfinite(z).all():
            raise ValueError("z holds NaN or infinity")

    def _decode(self, latents: Tensor) -> np.ndarray:
        """[W, 4, h, w] to uint8 [W, S, S, 3], a few frames at a time."""
        parts = [decode(self.parts.vae, part) for part in latents.split(_DECODE_SLICE)]
        return np.concatenate([from_model(part) for part in parts])


def windows_of(pieces: Iterable[Tensor], config: RenderConfig) -> Iterator[tuple[int, Tensor]]:
    """Pieces [n, D] of a performance to the windows of `render_windows`: (first frame, latents [W, D])."""
    held: Tensor | None = None
    first = 0
    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece])
        # A frame more than the window, or its end may turn out to be the performance's.
        while len(held) > config.window_frames:
            yield first, held[: config.window_frames]
            held, first = held[config.stride :], first + config.stride
    if held is not None and len(held) and (first == 0 or len(held) > config.overlap_frames):
        yield first, held


class Blend:
    """Puts windows together in order: what two of them share fades from the one to the other."""

    def __init__(self, config: RenderConfig):
        self._overlap = config.overlap_frames
        self._held: np.ndarray | None = None  # the last window's end, which the next may share

    def add(self, window: np.ndarray) -> Iterator[np.ndarray]:
        """The frames that are finished with this window uint8 [W, S, S, 3]."""
        if self._held is not None:
            share = min(len(self._held), len(window))
            fade = (np.arange(1, share + 1) / (share + 1)).reshape(-1, 1, 1, 1)
            mixed = self._held[:share] * (1 - fade) + window[:share] * fade
            window = np.concatenate([np.rint(mixed).astype(np.uint8), window[share:]])
        done = max(len(window) - self._overlap, 0)
        self._held = window[done:]
        yield from window[:done]

    def rest(self) -> Iterator[np.ndarray]:
        """What is left when no window follows."""
        if self._held is not None:
            yield from self._held
        self._held = None
