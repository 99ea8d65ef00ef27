"""A portrait's features and motion latents to frames: windows that stand for themselves, blended where they overlap.

A window's frames depend on the reference, its own latents and the video's first one, the seed and its absolute frame
numbers alone. So windows may be rendered anywhere, in any order, and again after a failure; and a video of any length
needs the memory of two.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from xactor.render.prediction import predict
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet
from xactor.render.windows import Blend, RenderConfig, windows_of

_SLICE = 4  # frames that the VAE takes together: at 512 px its activations outweigh the UNet's


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is computed of a portrait once, for all of its windows.

    Attributes:
        features: of the reference network. picture, latents: the portrait, [1, 3, S, S], and as the VAE has it,
            [1, 4, h, w]. z: its own motion latent, [1, D].
    """

    features: ReferenceFeatures
    picture: Tensor
    latents: Tensor
    z: Tensor


@dataclass(frozen=True, kw_only=True)
class Window:
    """Frames of one video that are denoised together.

    Attributes:
        z: their motion latents [W, latent_dim]. seed: of the video. first_frame: the first one's number in it.
        origin: which latent [latent_dim] is the portrait as it is. A performance's first one: who its motion model
            thinks of is another than the portrait, and z tells some of that. None: the portrait's own, and z is
            meant as it is.
    """

    reference: Reference
    z: Tensor
    seed: int
    first_frame: int
    origin: Tensor | None = None

    def placed(self) -> "Window":
        """With the portrait's own latent as its origin."""
        if self.origin is None:
            return self
        z = (self.z - self.origin).to(self.reference.z) + self.reference.z
        return replace(self, z=z, origin=None)


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
    def reference(self, image: np.ndarray) -> Reference:
        """Of a portrait uint8 [S, S, 3], S = image_size: once a portrait, for all of its windows."""
        if image.shape != (self.image_size, self.image_size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"the portrait must be uint8 [{self.image_size}, {self.image_size}, 3], "
                f"got {image.dtype} {list(image.shape)}"
            )
        vae = self.parts.vae
        picture = to_model(image[None], vae.device, vae.dtype)
        latents = encode(vae, picture).to(self.dtype)
        return Reference(
            features=self.parts.reference_unet.features(latents),
            picture=picture,
            latents=latents,
            z=self.parts.motion_encoder(picture)[0],
        )

    def window(
        self,
        reference: Reference,
        z: Tensor,
        *,
        seed: int,
        first_frame: int,
        config: RenderConfig | None = None,
    ) -> np.ndarray:
        """One window's frames, uint8 [W, S, S, 3], from its motion latents [W, latent_dim].

        `first_frame` is the number of its first frame in the whole video: noise is keyed by it.
        """
        window = Window(reference=reference, z=z, seed=seed, first_frame=first_frame)
        return self.windows([window], config)[0]

    @torch.no_grad()
    def windows(self, windows: Sequence[Window], config: RenderConfig | None = None) -> list[np.ndarray]:
        """Windows of like length, of any videos, side by side: as many uint8 [W, S, S, 3]."""
        config = config or RenderConfig()
        for window in windows:
            self.check(window.z, config)
        if len({len(window.z) for window in windows}) != 1:
            raise ValueError(
                f"windows must be alike in length, got {sorted({len(window.z) for window in windows})}"
            )
        windows = [window.placed() for window in windows]
        branches = 2 if config.cfg > 1 else 1  # with motion, and without
        x = torch.stack([self._noise(window) for window in windows])  # [N, W, 4, h, w]
        z = torch.stack([window.z for window in windows]).to(self.device, self.dtype)  # [N, W, latent_dim]
        guess = torch.stack(
            [self._guess(window.reference, own) for window, own in zip(windows, z, strict=True)]
        )  # [N, W, 4, h, w]
        if branches == 2:  # without motion the portrait stays as it is
            still = torch.stack([window.reference.latents for window in windows])  # [N, 1, 4, h, w]
            guess = torch.cat([guess, still.expand_as(guess)])  # first all with motion, then all without
        keep = torch.tensor([1, 0][:branches], device=self.device).repeat_interleave(len(windows))
        z = z.repeat(branches, 1, 1)
        features = {
            name: torch.cat([window.reference.features[name] for window in windows] * branches)
            for name in windows[0].reference.features
        }
        scheduler = copy.deepcopy(
            self.parts.scheduler
        )  # its timesteps are state, and windows may run side by side
        scheduler.set_timesteps(config.steps)
        for level in scheduler.timesteps.tolist():
            levels = torch.full((len(z),), level, device=self.device)
            noisy = x.repeat(branches, 1, 1, 1, 1)
            out = predict(self.parts.unet, scheduler, noisy, levels, z, keep, features, guess)
            heard, *unheard = out.chunk(branches)
            guided = unheard[0] + config.cfg * (heard - unheard[0]) if unheard else heard
            x = scheduler.step(guided, level, x, eta=0.0, return_dict=False)[0]
        return [self._decode(own, window) for own, window in zip(x, windows, strict=True)]

    def check(self, z: Tensor, config: RenderConfig) -> None:
        """ValueError: motion latents or choices that no window can be rendered of."""
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

    def render(
        self,
        reference: Reference,
        z: Tensor | Iterable[Tensor],
        *,
        seed: int,
        config: RenderConfig | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames uint8 [S, S, 3], one after another, of latents [T, latent_dim] or of pieces [n, latent_dim] of them.

        The first frame is the portrait as it is, and the others move it by what z has changed since. A window is
        rendered as soon as its latents are there; two windows are the most that is held.
        """
        config = config or RenderConfig()
        blend = Blend(config)
        origin: Tensor | None = None
        for first, part in windows_of([z] if isinstance(z, Tensor) else z, config, torch.cat):
            origin = part[0] if origin is None else origin
            window = Window(reference=reference, z=part, seed=seed, first_frame=first, origin=origin)
            yield from blend.add(self.windows([window], config)[0])
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

    def _noise(self, window: Window) -> Tensor:
        """What its frames begin as, [W, 4, h, w]."""
        unet, size = self.parts.unet, int(self.parts.unet.config["sample_size"])
        shape = (int(unet.config["in_channels"]), size, size)
        frames = range(window.first_frame, window.first_frame + len(window.z))
        noise = [
            torch.randn(shape, generator=keyed_generator(window.seed, "render", frame)) for frame in frames
        ]
        return torch.stack(noise).to(self.device, self.dtype)

    def _guess(self, reference: Reference, z: Tensor) -> Tensor:
        """Latents of the portrait as motion latents [W, D] move it, [W, 4, h, w]."""
        parts = []
        for change in (z - reference.z).split(_SLICE):
            picture = reference.picture.expand(len(change), *reference.picture.shape[1:])
            parts.append(encode(self.parts.vae, self.parts.unet.guess_motion(change, picture)))
        return torch.cat(parts).to(self.dtype)

    def _decode(self, latents: Tensor, window: Window) -> np.ndarray:
        """[W, 4, h, w] to uint8 [W, S, S, 3], a few frames at a time."""
        vae, unet = self.parts.vae, self.parts.unet
        change = window.z.to(self.device, self.dtype) - window.reference.z
        frames = []
        for part, some in zip(latents.split(_SLICE), change.split(_SLICE), strict=True):
            pictures = decode(vae, part)
            if unet.config["guess_spread"] is not None:
                # Ours: what a small autoencoder loses of the guess, it loses of the frame: that much is put back.
                picture = window.reference.picture.expand(len(some), *window.reference.picture.shape[1:])
                moved = unet.guess_motion(some, picture)
                pictures = pictures + moved - decode(vae, encode(vae, moved).to(self.dtype))
            frames.append(from_model(pictures))
        return np.concatenate(frames)
