"""The loss of stage 1: a frame noised and denoised from a reference and the latent of its own motion (Paper 3.1)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from xactor.faces import MOUTH_REGION, region_pixels
from xactor.randomness import keyed_generator
from xactor.render.augment import DRIVING, PERSON, Augmentation, augment
from xactor.render.autoencoder import encode, reconstruction_loss
from xactor.render.frames import to_model
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.objective_config import ObjectiveConfig, Phase
from xactor.render.prediction import predict
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet


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
            vae.requires_grad_(False),
        )
        cast(nn.Module, vae.decoder).requires_grad_(train_vae)  # the encoder of one from nothing is finished
        self.scheduler = scheduler
        self.config = config or ObjectiveConfig()

    def parameter_groups(self) -> dict[Phase, list[nn.Parameter]]:
        """What each phase trains; the lists have nothing in common."""
        temporal = {id(p) for layer in self.unet.temporal_layers() for p in layer.parameters()}
        elsewhere = temporal | {id(p) for p in self.unet.motion_proj.parameters()}
        motion = [*self.motion_encoder.parameters(), *self.unet.motion_proj.parameters()]
        spatial = [
            p
            for part in (self.reference_unet, self.unet)
            for p in part.parameters()
            if p.requires_grad and id(p) not in elsewhere
        ]
        return {
            "vae": [p for p in self.vae.parameters() if p.requires_grad],
            "motion": motion,
            "frames": spatial,
            "temporal": [p for p in self.unet.parameters() if id(p) in temporal],
        }

    def forward(
        self, frames: Tensor, reference: Tensor, weight: Tensor, seeds: list[tuple], phase: Phase
    ) -> Tensor:
        """The loss summed over the frames of the samples whose weight is 1.

        Args:
            frames: uint8 [B, F, S, S, 3], of one clip a sample: a window of successive ones in the last phase, single
                ones before. reference: uint8 [B, S, S, 3], another frame of the clip.
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
            both = torch.stack([_quarter(clip, g) for clip, g in zip(both, generators, strict=True)])
            return (reconstruction_loss(self.vae, both, generators) * weight).sum() * frames.shape[1]
        # Frames by themselves, each with its own noise level; or all of a sample's as one window.
        clips = 1 if phase == "temporal" else frames.shape[1]
        pictures = both[:, 1:].unflatten(1, (clips, -1)).flatten(0, 1)  # [N, W, 3, S, S], N = B x clips
        window = pictures.shape[1]

        def drawn(draw: Callable[[torch.Generator], Any]) -> list:
            """Of each of the N windows."""
            return [draw(g) for g in generators for _ in range(clips)]

        driving = augment(pictures, drawn(lambda g: Augmentation.draw(DRIVING, g)))
        mean, logvar = self.motion_encoder(driving.flatten(0, 1))  # [N W, D]
        noise = torch.cat(drawn(lambda g: torch.randn(window, mean.shape[1], generator=g)))
        z = mean + torch.exp(logvar / 2) * noise.to(device, dtype)
        loss = self.config.kl_weight * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)  # [N W]
        resting = augment(both[:, :1], [Augmentation.draw(DRIVING, g) for g in generators])[:, 0]
        start = self.motion_encoder(resting)[0]  # [B, D]
        if phase != "temporal":
            loss = loss + self.config.motion_weight * self._guess_error(both, z, start)
            of_clips = torch.cat([start[:, None], mean.unflatten(0, frames.shape[:2])], dim=1)
            loss = loss + self.config.person_weight * shared_part(of_clips).repeat_interleave(clips)
        if phase != "motion":
            windows = z.unflatten(0, (-1, window))
            loss = loss + self._denoising_loss(both, windows, start, generators, drawn)
        return (loss * weight.repeat_interleave(clips * window)).sum()

    def _guess_error(self, both: Tensor, z: Tensor, start: Tensor) -> Tensor:
        """Of thumbnails of the frames, guessed from their references', [B F]: of pictures [B, 1 + F, 3, S, S]."""
        frames = both.shape[1] - 1
        reference = self.unet.thumbnails(both[:, 0]).repeat_interleave(frames, dim=0)
        guess = self.unet.guess_motion(z - start.repeat_interleave(frames, dim=0), reference)
        true = self.unet.thumbnails(both[:, 1:].flatten(0, 1))
        error = (guess - true).square().mean(dim=1)  # [B F, T, T]
        counts = torch.ones_like(error[0])
        counts[region_pixels(MOUTH_REGION, len(counts))] += self.config.mouth_weight
        return (error * counts).mean(dim=(1, 2)) / counts.mean()

    def _denoising_loss(
        self,
        both: Tensor,
        z: Tensor,
        start: Tensor,
        generators: list[torch.Generator],
        drawn: Callable[[Callable], list],
    ) -> Tensor:
        """Of N windows [N W], with z [N, W, D], which share the references of their samples [B, 1 + F, 3, S, S], whose
        own z are `start` [B, D]."""
        device, dtype = both.device, both.dtype
        count, window = z.shape[:2]
        with torch.no_grad():
            latents = encode(self.vae, both.flatten(0, 1)).unflatten(0, both.shape[:2])
        clean = latents[:, 1:].reshape(count, window, *latents.shape[2:])  # [N, W, C, h, w]
        keep = torch.cat(drawn(lambda g: torch.rand(1, generator=g) >= self.config.motion_drop)).to(device)
        with torch.no_grad():
            frames = both.shape[1] - 1
            change = z.flatten(0, 1) - start.repeat_interleave(frames, dim=0)  # [N W, D]
            change = change * keep.repeat_interleave(window)[:, None]
            moved = self.unet.guess_motion(change, both[:, 0].repeat_interleave(frames, dim=0))
            guess = encode(self.vae, moved).unflatten(0, (count, window))  # [N, W, C, h, w]
        steps = int(self.scheduler.config["num_train_timesteps"])
        level: Any = torch.cat(drawn(lambda g: torch.randint(0, steps, (1,), generator=g))).to(device)
        eps = torch.stack(drawn(lambda g: torch.randn(clean.shape[1:], generator=g))).to(device, dtype)
        noisy = self.scheduler.add_noise(clean, eps, level)
        target = (
            self.scheduler.get_velocity(clean, eps, level)
            if self.scheduler.config["prediction_type"] == "v_prediction"
            else eps
        )
        features = self.reference_unet.features(latents[:, 0])
        predicted = predict(self.unet, self.scheduler, noisy, level, z, keep, features, guess)
        error = (predicted - target) ** 2  # [N, W, C, h, w]
        return error.mean(dim=(2, 3, 4)).flatten()


def _quarter(clip: Tensor, generator: torch.Generator) -> Tensor:
    """A piece of half the side of pictures [..., S, S]: enough for an autoencoder to learn from, for less work."""
    side = clip.shape[-1] // 2
    top, left = torch.randint(0, clip.shape[-1] - side + 1, (2,), generator=generator).tolist()
    return clip[..., top : top + side, left : left + side]


def shared_part(z: Tensor) -> Tensor:
    """How much of n latents [B, n, D] is what the n have in common: [B], 0 of none of it, 1 of all.

    A part, and not an amount, which smaller latents would make less of.
    """
    z = z.float()
    squares = z.square().sum((1, 2))
    # Products of different ones alone: noise has none on average.
    shared = (z.sum(1).square().sum(1) - squares) / (z.shape[1] - 1)
    return shared / squares.clamp(min=1e-12)
