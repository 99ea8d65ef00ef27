"""The loss of stage 1: a frame noised and denoised from a reference and the latent of its own motion (Paper 3.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from xactor.randomness import keyed_generator
from xactor.render.augment import DRIVING, PERSON, Augmentation, augment
from xactor.render.autoencoder import encode, reconstruction_loss
from xactor.render.frames import to_model
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet

# vae: the autoencoder, where it is trained from nothing. frames: everything but time. temporal: the layers over time.
Phase = Literal["vae", "frames", "temporal"]
PHASES: tuple[Phase, ...] = ("vae", "frames", "temporal")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """
    kl_weight: of the KL divergence of z from the standard normal, summed over z, beside the mean squared error.
    motion_drop: how often the motion is dropped, for classifier-free guidance.
    moving_weight: how much more a place counts that moved between the reference and the target; 0 is the plain loss.
    """

    kl_weight: float = 1e-5
    motion_drop: float = 0.1
    moving_weight: float = 0.0

    def __post_init__(self):
        for name in ("kl_weight", "moving_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.motion_drop < 1:
            raise ValueError(f"motion_drop must be within 0..1, got {self.motion_drop}")


class RenderObjective(nn.Module):
    """The parts of the renderer and their loss in one module, for a training engine."""

    def __init__(
        self,
        motion_encoder: MotionEncoder,
        unet: RendererUNet,
        reference_unet: ReferenceUNet,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        config: ObjectiveConfig | None = None,
        *,
        train_vae: bool = False,
    ):
        super().__init__()
        self.motion_encoder, self.unet, self.reference_unet, self.vae = (
            motion_encoder,
            unet,
            reference_unet,
            vae.requires_grad_(train_vae),
        )
        self.scheduler = scheduler
        self.config = config or ObjectiveConfig()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each phase trains; the lists have nothing in common."""
        temporal = {id(p) for layer in self.unet.temporal_layers() for p in layer.parameters()}
        spatial = [
            p
            for part in (self.motion_encoder, self.reference_unet, self.unet)
            for p in part.parameters()
            if p.requires_grad and id(p) not in temporal
        ]
        return {
            "vae": [p for p in self.vae.parameters() if p.requires_grad],
            "frames": spatial,
            "temporal": [p for p in self.unet.parameters() if id(p) in temporal],
        }

    def forward(
        self, frames: Tensor, reference: Tensor, weight: Tensor, seeds: list[tuple], phase: Phase
    ) -> Tensor:
        """The loss summed over the frames of the samples whose weight is 1.

        Args:
            frames: uint8 [B, F, S, S, 3], of one clip a sample: single ones in the first two phases, a window of
                successive ones in the last. reference: uint8 [B, S, S, 3], another frame of the clip.
            seeds: a sample's own, for everything that is drawn for it.
        """
        generators = [keyed_generator(*seed, "render") for seed in seeds]
        device, dtype = self.vae.device, self.vae.dtype
        both = to_model(torch.cat([reference[:, None], frames], dim=1), device, dtype)  # [B, 1 + F, 3, S, S]
        flips = torch.tensor([torch.rand((), generator=g) < 0.5 for g in generators], device=device)
        both = torch.where(flips[:, None, None, None, None], both.flip(-1), both)
        both = augment(both, [Augmentation.draw(PERSON, g) for g in generators])
        weight = weight.to(device, dtype)
        if phase == "vae":
            loss = reconstruction_loss(self.vae, both.flatten(0, 1)).unflatten(0, both.shape[:2])
            return (loss.mean(1) * weight).sum() * frames.shape[1]
        # Frames by themselves, each with its own noise level; or all of a sample's as one window.
        clips = frames.shape[1] if phase == "frames" else 1
        return self._diffusion_loss(both, generators, weight, clips)

    def _diffusion_loss(
        self, both: Tensor, generators: list[torch.Generator], weight: Tensor, clips: int
    ) -> Tensor:
        """Of `clips` windows a sample, N = B x clips in all, that share the sample's reference."""
        device, dtype = both.device, both.dtype
        with torch.no_grad():
            latents = encode(self.vae, both.flatten(0, 1)).unflatten(0, both.shape[:2])
        still = latents[:, 0]  # [B, C, h, w]
        clean = latents[:, 1:].unflatten(1, (clips, -1)).flatten(0, 1)  # [N, W, C, h, w]
        pictures = both[:, 1:].unflatten(1, (clips, -1)).flatten(0, 1)  # [N, W, 3, S, S]
        window = clean.shape[1]

        def drawn(draw: Callable[[torch.Generator], Any]) -> list:
            return [draw(g) for g in generators for _ in range(clips)]

        driving = augment(pictures, drawn(lambda g: Augmentation.draw(DRIVING, g)))
        mean, logvar = self.motion_encoder(driving.flatten(0, 1))  # [N W, D]
        noise = torch.cat(drawn(lambda g: torch.randn(window, mean.shape[1], generator=g)))
        z = (mean + torch.exp(logvar / 2) * noise.to(device, dtype)).unflatten(0, (-1, window))
        keep = torch.cat(drawn(lambda g: torch.rand(1, generator=g) >= self.config.motion_drop)).to(device)

        steps = int(self.scheduler.config["num_train_timesteps"])
        level: Any = torch.cat(drawn(lambda g: torch.randint(0, steps, (1,), generator=g))).to(device)
        eps = torch.stack(drawn(lambda g: torch.randn(clean.shape[1:], generator=g))).to(device, dtype)
        noisy = self.scheduler.add_noise(clean, eps, level)
        target = (
            self.scheduler.get_velocity(clean, eps, level)
            if self.scheduler.config["prediction_type"] == "v_prediction"
            else eps
        )
        features = self.reference_unet.features(still)
        error = (self.unet(noisy, level, z, keep, features) - target) ** 2  # [N, W, C, h, w]
        if self.config.moving_weight:
            moved = (clean - still.repeat_interleave(clips, dim=0)[:, None]).abs().mean(2, keepdim=True)
            usual = moved.mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
            places = 1 + self.config.moving_weight * moved / usual  # [N, W, 1, h, w]
            error = error * places / places.mean(dim=(1, 2, 3, 4), keepdim=True)
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)  # [N W]
        loss = error.mean(dim=(2, 3, 4)).flatten() + self.config.kl_weight * divergence
        return (loss * weight.repeat_interleave(clips * window)).sum()
