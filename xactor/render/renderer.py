"""Render frames from a portrait and motion latents, in windows that are independent of each other.

A window is the frames that are denoised together. Its frames depend only on the reference (the features of the
portrait), the window's latents, the video's first latent, the seed and the absolute frame numbers. So windows may be
rendered on any machine, in any order, and again after a failure. A video of any length needs the memory of two windows.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from xactor.faces.landmarks import find_landmarks
from xactor.model_folder import check_origins, loading
from xactor.randomness import into_own_memory, keyed_generator
from xactor.render.attention import ReferenceFeatures
from xactor.render.autoencoder import decode, encode
from xactor.render.components import Components
from xactor.render.frames import from_model, to_model
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.prediction import predict
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet
from xactor.render.windows import Blend, RenderConfig, windows_of

# Number of frames that the VAE encodes or decodes together. At 512 px the VAE's activations need more memory than the
# UNet's.
_VAE_FRAMES = 4
OnStep = Callable[[int, int, Tensor], Tensor]
"""A function that is called after each DDIM step: see `Renderer.windows`."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Hold the data that is computed once from a portrait and used for all of its windows."""

    features: ReferenceFeatures
    """Features from the reference network, for the UNet's self-attentions."""
    picture: Tensor
    """The portrait, [1, 3, S, S] in [-1, 1]. The frames have the same size."""
    latents: Tensor
    """The portrait's latents from the VAE, [1, C, h, w]."""
    z: Tensor
    """The portrait's own motion latent, float32 [1, D]."""
    landmarks: Tensor | None
    """The face's landmarks, float32 [1, K, 2], for the guess network. None for a renderer without this network."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Describe frames of one video that are denoised together."""

    reference: Reference
    """The portrait."""
    z: Tensor
    """Motion latents of the frames, float32 [W, D]."""
    seed: int
    """Seed of the video."""
    first_frame: int
    """Number of the first frame in the video. The noise of each frame depends on the frame's number."""
    origin: Tensor | None = None
    """Latent [D] at which the portrait does not move: the first latent that the motion model made. A motion model's
    latents also describe another person a little, so only changes from the first latent are used. None means the
    portrait's own latent, and z is used unchanged."""

    def from_portrait(self) -> "Window":
        """Return the window with z made relative to the portrait, so that no `origin` is needed.

        The new z is the portrait's own latent plus the change of z since `origin`.
        """
        if self.origin is None:
            return self
        z = (self.z - self.origin).to(self.reference.z) + self.reference.z  # [W, D]
        return replace(self, z=z, origin=None)


class Renderer:
    """Render frames with the components that stage 1, the renderer's training, produces.

    Args:
        motion_encoder: E_mot.
        unet: The UNet that denoises frames.
        reference_unet: The network that gives the features of the portrait.
        vae: The autoencoder.
        scheduler: Noise schedule and prediction type.
    """

    def __init__(
        self,
        motion_encoder: MotionEncoder,
        unet: RendererUNet,
        reference_unet: ReferenceUNet,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
    ):
        self.components = Components(
            motion_encoder=motion_encoder,
            unet=unet,
            reference_unet=reference_unet,
            vae=vae,
            scheduler=scheduler,
        )
        for model in (motion_encoder, unet, reference_unet, vae):
            model.eval()
        shrink = 1 << (len(vae.config["block_out_channels"]) - 1)
        # Side in pixels of the pictures whose latents the UNet sees.
        self.model_size = int(unet.config["sample_size"]) * shrink
        # Side in pixels of full-size portraits and frames.
        self.image_size = self.model_size * int(unet.config["guess_scale"])
        self.latent_dim = int(unet.config["latent_dim"])
        self.max_window_frames = int(unet.config["motion_max_seq_length"])

    @property
    def device(self) -> torch.device:
        return self.components.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.components.unet.dtype

    @torch.no_grad()
    def reference(self, image: np.ndarray) -> Reference:
        """Compute the reference of a portrait uint8 [S, S, 3], where S is image_size or model_size.

        Frames that are rendered with this reference have the portrait's size.
        """
        shapes = [(side, side, 3) for side in (self.image_size, self.model_size)]
        if image.shape not in shapes or image.dtype != np.uint8:
            raise ValueError(
                f"the portrait must be uint8 [{self.image_size}, {self.image_size}, 3], "
                f"got {image.dtype} {list(image.shape)}"
            )
        vae = self.components.vae
        picture = to_model(image[None], vae.device, vae.dtype)  # [1, 3, S, S]
        small = self._reduced(picture)  # [1, 3, M, M]
        latents = encode(vae, small).to(self.dtype)  # [1, C, h, w]
        landmarks = None
        if self.components.unet.guess_network is not None:
            landmarks = torch.from_numpy(find_landmarks(image)).to(self.device)[None]
        return Reference(
            features=self.components.reference_unet.features(latents),
            picture=picture,
            latents=latents,
            z=self.components.motion_encoder(small)[0],
            landmarks=landmarks,
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
        """Render one window, uint8 [W, S, S, 3], from its motion latents [W, D]; see `Window`."""
        window = Window(reference=reference, z=z, seed=seed, first_frame=first_frame)
        return self.windows([window], config)[0]

    @torch.no_grad()
    def windows(
        self,
        windows: Sequence[Window],
        config: RenderConfig | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> list[np.ndarray]:
        """Render N windows of the same length, from any videos, in one batch: uint8 [W, S, S, 3] each.

        Args:
            windows: The windows.
            config: Steps and guidance.
            on_step: Called after each DDIM step with the step's number, the timestep before the step and the latents
                after it, [N, W, C, h, w]. Returns the latents with which the next step continues.

        Raises:
            ValueError: The windows differ in length, or `check` fails.
        """
        config = config or RenderConfig()
        for window in windows:
            self.check(window.z, config)
        lengths = sorted({len(window.z) for window in windows})
        if len(lengths) != 1:
            raise ValueError(f"windows must be alike in length, got {lengths}")
        if config.relative_motion:
            windows = [window.from_portrait() for window in windows]
        # The conditional branch uses the motion. The unconditional branch does not. Only guidance needs the latter.
        branches = 2 if config.cfg > 1 else 1
        # Latents stay in float32 between the steps. The networks convert them to the dtype of their weights.
        x = torch.stack([self._noise(window) for window in windows])  # [N, W, C, h, w]
        z = torch.stack([window.z for window in windows]).to(self.device, torch.float32)  # [N, W, D]
        guesses = [self._guess(window.reference, own) for window, own in zip(windows, z, strict=True)]
        if config.steps == 0:
            return [from_model(guess) for guess in guesses if guess is not None]
        guessed = self._encoded(guesses)  # [N, W, C, h, w]
        guess = guessed
        if guessed is not None and branches == 2:
            # The unconditional branch has no motion, so its guess is the unmoved portrait.
            still = torch.stack([window.reference.latents for window in windows])  # [N, 1, C, h, w]
            guess = torch.cat([guessed, still.expand_as(guessed)])  # [branches N, W, C, h, w]
        keep = torch.tensor([1, 0][:branches], device=self.device).repeat_interleave(len(windows))
        z = z.repeat(branches, 1, 1)  # [branches N, W, D]
        features = {
            name: torch.cat([window.reference.features[name] for window in windows] * branches)
            for name in windows[0].reference.features
        }  # [branches N, tokens, C] each
        # Copy the scheduler, because timesteps are part of its state and other threads may render at the same time.
        scheduler = copy.deepcopy(self.components.scheduler)
        scheduler.set_timesteps(config.steps)
        for number, level in enumerate(scheduler.timesteps.tolist()):
            levels = torch.full((len(z),), level, device=self.device)
            noisy = x.repeat(branches, 1, 1, 1, 1)  # [branches N, W, C, h, w]
            out = predict(self.components.unet, scheduler, noisy, levels, z, keep, features, guess)
            if branches == 2:
                cond, uncond = out.chunk(2)  # [N, W, C, h, w] each
                out = uncond + config.cfg * (cond - uncond)
            x = scheduler.step(out, level, x, eta=0.0, return_dict=False)[0]
            if on_step:
                x = on_step(number, level, x)
        return [
            self._decode(latents, guesses[i], None if guessed is None else guessed[i])
            for i, latents in enumerate(x)
        ]

    def check_config(self, config: RenderConfig) -> None:
        """Raise ValueError if this renderer cannot render with this config."""
        if config.steps == 0 and self.components.unet.guess_network is None:
            raise ValueError("render steps must be >= 1 for a renderer without a guess, got 0")
        if config.window_frames > self.max_window_frames:
            raise ValueError(
                f"window_frames must be <= {self.max_window_frames} for this renderer, got {config.window_frames}"
            )

    def check(self, z: Tensor, config: RenderConfig) -> None:
        """Raise ValueError if this renderer cannot render these motion latents with this config."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must be [frames, {self.latent_dim}] for this renderer, got {list(z.shape)}")
        if not 1 <= len(z) <= config.window_frames:
            raise ValueError(f"a window must have 1..{config.window_frames} frames, got {len(z)}")
        self.check_config(config)
        if not torch.isfinite(z).all():
            raise ValueError("z contains NaN or infinity")

    def render(
        self,
        reference: Reference,
        z: Tensor | Iterable[Tensor],
        *,
        seed: int,
        config: RenderConfig | None = None,
        lead_frames: int = 0,
        on_step: OnStep | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield a video's frames, uint8 [S, S, 3].

        With `relative_motion`, the frames move the portrait by the change of z since the first latent. A window is
        rendered as soon as its latents have arrived. At most two windows are held in memory.

        Args:
            reference: The portrait.
            z: Motion latents, as one tensor [T, D] or as successive tensors [n, D].
            seed: Seed of the video.
            config: Steps, guidance and windows.
            lead_frames: Number of latents before those of the first frame, see `RenderConfig.lead_frames`.
            on_step: See `windows`.
        """
        config = config or RenderConfig()
        blend = Blend(config)
        pieces = [z] if isinstance(z, Tensor) else z
        for first, own, origin in windows_of(pieces, config, torch.cat, lead_frames=lead_frames):
            window = Window(reference=reference, z=own, seed=seed, first_frame=first, origin=origin)
            yield from blend.add(self.windows([window], config, on_step=on_step)[0])
        yield from blend.rest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Save each component into its own folder: motion_encoder/, unet/, reference_unet/, vae/, scheduler/."""
        for name, component in vars(self.components).items():
            component.save_pretrained(Path(folder) / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Renderer":
        """Load a renderer that `save_pretrained` saved.

        Raises:
            FileNotFoundError: A component is missing. The message names the component.
            ValueError: A component lacks weights or cannot be loaded, or the motion encoder and the UNet do not work
                with the same latents. The message names the component.
        """
        classes = {
            "motion_encoder": MotionEncoder,
            "unet": RendererUNet,
            "reference_unet": ReferenceUNet,
            "vae": AutoencoderKL,
            "scheduler": DDIMScheduler,
        }
        check_origins(dict.fromkeys(("motion_encoder", "unet"), folder))
        components = {}
        for name, kind in classes.items():
            config = Path(folder) / name / kind.config_name
            if not config.is_file():
                raise FileNotFoundError(f"no {name} in {folder}: {name}/{kind.config_name} is missing")
            with loading(folder, name, kind.__name__):
                if kind is DDIMScheduler:
                    components[name] = kind.from_pretrained(str(config.parent))
                    continue
                components[name], info = kind.from_pretrained(
                    str(config.parent), low_cpu_mem_usage=False, output_loading_info=True
                )
                # diffusers would leave missing weights random. Models that earlier versions saved lack some weights.
                if info["missing_keys"]:
                    raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
                into_own_memory(components[name])
        # The renderer takes its sizes from the UNet's config.
        with loading(folder, "unet", RendererUNet.__name__):
            return cls(**components)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Renderer":
        """Move the models to a device, and convert them if a dtype is given. Return this renderer."""
        for model in vars(self.components).values():
            if isinstance(model, nn.Module):
                model.to(device=device, dtype=dtype)
        return self

    def _noise(self, window: Window) -> Tensor:
        """Return the noise from which a window's frames are denoised, float32 [W, C, h, w]."""
        unet, size = self.components.unet, int(self.components.unet.config["sample_size"])
        shape = (int(unet.config["in_channels"]), size, size)
        frames = range(window.first_frame, window.first_frame + len(window.z))
        noise = [
            torch.randn(shape, generator=keyed_generator(window.seed, "render", frame)) for frame in frames
        ]
        return torch.stack(noise).to(self.device)

    def _guess(self, reference: Reference, z: Tensor) -> Tensor | None:
        """Return the frames that the guess network makes from motion latents [W, D]: [W, 3, S, S].

        Return None for a renderer without a guess network.
        """
        network = self.components.unet.guess_network
        if network is None or reference.landmarks is None:
            return None
        scale, parts = self._scale(reference.picture), []
        for own in z.split(_VAE_FRAMES):
            picture = reference.picture.expand(len(own), *reference.picture.shape[1:])  # [n, 3, S, S]
            landmarks = reference.landmarks.expand(len(own), -1, -1)  # [n, K, 2]
            parts.append(network(picture, landmarks, own - reference.z, scale=scale))
        return torch.cat(parts)

    def _scale(self, pictures: Tensor) -> int:
        """Return how many times larger than model_size the side of pictures is."""
        return pictures.shape[-1] // self.model_size

    def _reduced(self, pictures: Tensor) -> Tensor:
        """Reduce pictures [N, 3, S, S] to [N, 3, M, M], M = model_size."""
        scale = self._scale(pictures)
        return F.avg_pool2d(pictures, scale) if scale > 1 else pictures

    def _encoded(self, guesses: Sequence[Tensor | None]) -> Tensor | None:
        """Return the latents [N, W, C, h, w] of the guessed frames of N windows, [W, 3, S, S] each, or None.

        None means a renderer without a guess network.
        """
        vae = self.components.vae
        encoded = [
            torch.cat([encode(vae, self._reduced(part)).to(self.dtype) for part in guess.split(_VAE_FRAMES)])
            for guess in guesses
            if guess is not None
        ]
        return torch.stack(encoded) if encoded else None

    def _decode(self, latents: Tensor, guess: Tensor | None, guessed: Tensor | None) -> np.ndarray:
        """Decode latents [W, C, h, w] to frames uint8 [W, S, S, 3], a few frames at a time.

        Args:
            latents: Denoised latents of the frames.
            guess: The guessed frames, [W, 3, S, S].
            guessed: The guessed frames' latents, [W, C, h, w].
        """
        vae, unet = self.components.vae, self.components.unet
        frames = []
        for i in range(0, len(latents), _VAE_FRAMES):
            part = slice(i, i + _VAE_FRAMES)
            pictures = decode(vae, latents[part])  # [n, 3, M, M]
            if guess is not None and guessed is not None and unet.config["guess_spread"] is not None:
                # Ours: a small autoencoder loses details, about the same ones of the guess and of the frame. The guess
                # itself still has them. So the difference of the two decoded pictures is added to the guess.
                correction = pictures - decode(vae, guessed[part])
                size = guess.shape[-2:]
                pictures = guess[part] + F.interpolate(correction, size, mode="bilinear", align_corners=False)
            frames.append(from_model(pictures))
        return np.concatenate(frames)
