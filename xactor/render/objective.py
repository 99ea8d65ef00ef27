"""Compute the loss of stage 1, which trains the renderer and the motion encoder E_mot (Paper 3.1).

E_mot encodes the motion of frames to motion latents z. The renderer denoises the frames, given these latents and a
reference: another frame of the same clip, in the role of the portrait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from xactor.controls import controls_to_latents, mirror_controls
from xactor.faces import MOUTH_REGION, region_pixels
from xactor.faces.landmarks import MEAN_LANDMARKS, MIRRORED
from xactor.randomness import keyed_generator
from xactor.render.augment import DRIVING, PERSON, TAUGHT_PERSON, Augmentation, augment, augment_places
from xactor.render.autoencoder import encode, reconstruction_loss
from xactor.render.frames import to_model
from xactor.render.guess import GuessNetwork
from xactor.render.motion_encoder import MotionEncoder
from xactor.render.objective_config import ObjectiveConfig, Phase
from xactor.render.prediction import predict
from xactor.render.reference import ReferenceUNet
from xactor.render.unet import RendererUNet

# Weight of the error of E_mot that all frames of a clip have in common, relative to the rest of the error.
_COMMON_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class FaceTracks:
    """Hold the controls and landmarks that a landmark model found in clips.

    Controls (see `xactor.controls`) let a small renderer learn motion from the first step, when E_mot knows nothing.
    """

    controls: Tensor
    """Controls of the reference and the frames, float32 [B, 1 + F, 57]. E_mot learns to predict the latents that the
    controls stand for. The renderer learns from the changes of these latents, instead of E_mot's."""
    landmarks: Tensor | None = None
    """Landmarks of n frames of each clip, the reference first, float32 [B, n, K, 2]. The other n - 1 frames need not be
    among the F frames."""
    landmark_controls: Tensor | None = None
    """Controls of these n frames, float32 [B, n, 57]."""


@dataclass(frozen=True, kw_only=True)
class _Clips:
    """Hold augmented clips, divided into windows of frames that are denoised together."""

    pictures: Tensor
    """Reference and frames [B, 1 + F, 3, S, S]."""
    weight: Tensor
    """Weight of each clip, float32 [B], 0 or 1."""
    generators: list[torch.Generator]
    """Random generator of each clip. The results depend on the order of the draws."""
    taught: Tensor | None
    """Latents that the controls of the reference and the frames stand for, [B, 1 + F, D]; None without controls."""
    landmarks: Tensor
    """Landmarks of n frames, the reference first, float32 [B, n, K, 2]."""
    landmark_latents: Tensor | None
    """Latents that the controls of these n frames stand for, [B, n, D]; None without landmarks in the data."""
    windows: int
    """Number of windows per clip: F windows of one frame, or one window of F frames. In this file N = B x windows, and
    each window has W frames."""

    @property
    def frames(self) -> int:
        """Return F, the number of frames per clip without the reference."""
        return self.pictures.shape[1] - 1

    def draw(self, function: Callable[[torch.Generator], Any]) -> list:
        """Call a drawing function once for each of the N windows, with its clip's generator."""
        return [function(generator) for generator in self.generators for _ in range(self.windows)]

    def weighted_sum(self, loss: Tensor) -> Tensor:
        """Return the sum of the losses [B F] of all frames of clips whose weight is 1: a scalar."""
        return (loss * self.weight.repeat_interleave(self.frames)).sum()


@dataclass(frozen=True, kw_only=True)
class _Motion:
    """Hold the motion latents z of clips, in float32. The posterior is the distribution of z that E_mot returns."""

    mean: Tensor
    """Posterior mean of the frames' z, [B F, D]."""
    logvar: Tensor
    """Posterior log variance of the frames' z, [B F, D]."""
    z: Tensor
    """The frames' z from which the renderer learns, [B F, D]: samples of the posterior, or computed from controls."""
    origin: Tensor
    """Posterior mean of the references' z, [B, D]."""


class RenderObjective(nn.Module):
    """Hold the renderer's components and their loss in one module, so that a training engine can wrap both.

    Args:
        motion_encoder: E_mot.
        unet: The UNet that denoises frames.
        reference_unet: The network that gives the features of the reference.
        vae: The autoencoder.
        scheduler: Noise schedule and prediction type.
        config: Weights of the loss.
        train_vae: Train the VAE's decoder. The VAE's encoder needs no training, even in a renderer from random weights.
    """

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
        self.motion_encoder, self.unet, self.reference_unet = motion_encoder, unet, reference_unet
        self.vae = vae.requires_grad_(False)
        cast(nn.Module, vae.decoder).requires_grad_(train_vae)
        self.scheduler = scheduler
        self.config = config or ObjectiveConfig()

    def parameter_groups(self) -> dict[Phase, list[nn.Parameter]]:
        """Return the parameters that each phase trains; the lists are disjoint."""
        temporal = {id(p) for layer in self.unet.temporal_layers() for p in layer.parameters()}
        guess = list(self.unet.guess_network.parameters()) if self.unet.guess_network else []
        in_other_groups = temporal | {id(p) for p in guess}
        motion = [*self.motion_encoder.parameters(), *guess]
        spatial = [
            p
            for model in (self.reference_unet, self.unet)
            for p in model.parameters()
            if p.requires_grad and id(p) not in in_other_groups
        ]
        return {
            "vae": [p for p in self.vae.parameters() if p.requires_grad],
            "motion": motion,
            "frames": spatial,
            "temporal": [p for p in self.unet.parameters() if id(p) in temporal],
        }

    def forward(
        self,
        frames: Tensor,
        reference: Tensor,
        weight: Tensor,
        seeds: list[tuple],
        phase: Phase,
        tracks: FaceTracks | None = None,
    ) -> Tensor:
        """Return the loss of a phase, summed over the frames of the samples whose weight is 1.

        Args:
            frames: Frames of one clip per sample, uint8 [B, F, S, S, 3]: successive frames in the phase `temporal`,
                separate frames in the others.
            reference: Another frame of each clip, uint8 [B, S, S, 3].
            weight: Weight of each sample, [B].
            seeds: Seed of each sample, for all of its random draws.
            phase: The phase of stage 1.
            tracks: Controls and landmarks of the clips, if the data has them.
        """
        windows = 1 if phase == "temporal" else frames.shape[1]
        # Without tracks, `_augmented` varies colours more. The VAE learns from such pictures.
        clips = self._augmented(frames, reference, weight, seeds, windows, None if phase == "vae" else tracks)
        phase_loss = {
            "vae": self._vae_loss,
            "motion": self._motion_loss,
            "frames": self._frames_loss,
            "temporal": self._temporal_loss,
        }[phase]
        return phase_loss(clips)

    def _vae_loss(self, clips: _Clips) -> Tensor:
        """Return the VAE's reconstruction error for a quarter of each picture."""
        quarters = torch.stack(
            [_quarter(clip, g) for clip, g in zip(clips.pictures, clips.generators, strict=True)]
        )  # [B, 1 + F, 3, S / 2, S / 2]
        loss = reconstruction_loss(self.vae, quarters, clips.generators)  # [B]
        # A clip's mean error counts once for each of its frames, because the loss of a phase is a sum over frames.
        return (loss * clips.weight).sum() * clips.frames

    def _motion_loss(self, clips: _Clips) -> Tensor:
        """Return the loss terms of the phase `motion`: the error of the guess and terms of z. The UNet does not run."""
        motion = self._encode_motion(clips)
        return clips.weighted_sum(self._motion_terms(clips, motion))

    def _frames_loss(self, clips: _Clips) -> Tensor:
        """Return the denoising error of single frames plus the loss terms of the phase `motion`."""
        motion = self._encode_motion(clips)
        terms = self._motion_terms(clips, motion)
        return clips.weighted_sum(terms + self._denoising_error(clips, motion))

    def _temporal_loss(self, clips: _Clips) -> Tensor:
        """Return the denoising error of windows plus the divergence of z."""
        motion = self._encode_motion(clips)
        return clips.weighted_sum(self._divergence(motion) + self._denoising_error(clips, motion))

    def _augmented(
        self,
        frames: Tensor,
        reference: Tensor,
        weight: Tensor,
        seeds: list[tuple],
        windows: int,
        tracks: FaceTracks | None,
    ) -> _Clips:
        """Flip and augment each clip and its reference in the same way, as if they showed another person."""
        generators = [keyed_generator(*seed, "render") for seed in seeds]
        device, dtype = self.vae.device, self.vae.dtype
        pictures = torch.cat([reference[:, None], frames], dim=1)  # [B, 1 + F, S, S, 3]
        pictures = to_model(pictures, device, dtype)  # [B, 1 + F, 3, S, S]
        flips = torch.stack([torch.rand((), generator=g) < 0.5 for g in generators]).to(device)  # [B]
        pictures = torch.where(flips[:, None, None, None, None], pictures.flip(-1), pictures)

        changes = [Augmentation.draw(TAUGHT_PERSON if tracks else PERSON, g) for g in generators]
        found = None if tracks is None else tracks.landmarks
        if found is None:
            found = torch.from_numpy(MEAN_LANDMARKS).expand(len(pictures), 1, -1, -1)
        landmarks = _mirrored_landmarks(found.to(device, torch.float32), flips)  # [B, n, K, 2]
        return _Clips(
            pictures=augment(pictures, changes),
            weight=weight.to(device, torch.float32),
            generators=generators,
            taught=self._latents_of(tracks.controls, flips) if tracks else None,
            landmarks=augment_places(landmarks.flatten(1, 2), changes).view_as(landmarks),
            landmark_latents=self._latents_of(tracks.landmark_controls, flips) if tracks else None,
            windows=windows,
        )

    def _latents_of(self, controls: Tensor | None, flips: Tensor) -> Tensor | None:
        """Return the latents that controls [B, n, 57] stand for, mirrored where flips [B] are True: [B, n, D]."""
        if controls is None:
            return None
        controls = controls.to(self.vae.device, torch.float32)
        controls = torch.where(flips[:, None, None], mirror_controls(controls), controls)
        return controls_to_latents(controls, self.motion_encoder.config["latent_dim"])

    def _encode_motion(self, clips: _Clips) -> _Motion:
        """Encode the motion of clips. E_mot sees pictures that are augmented once more, by one draw for each window."""
        pictures = clips.pictures[:, 1:].unflatten(1, (clips.windows, -1)).flatten(0, 1)  # [N, W, 3, S, S]
        driving = augment(pictures, clips.draw(lambda g: Augmentation.draw(DRIVING, g)))
        mean, logvar = self.motion_encoder(driving.flatten(0, 1))  # [B F, D]
        shape = (pictures.shape[1], mean.shape[1])
        noise = torch.cat(clips.draw(lambda g: torch.randn(shape, generator=g)))  # [B F, D]
        noise = torch.exp(logvar / 2) * noise.to(self.vae.device)
        reference = augment(clips.pictures[:, :1], [Augmentation.draw(DRIVING, g) for g in clips.generators])[
            :, 0
        ]  # [B, 3, S, S]
        origin = self.motion_encoder(reference)[0]  # [B, D]
        if clips.taught is None:
            return _Motion(mean=mean, logvar=logvar, z=mean + noise, origin=origin)
        # When a portrait is animated, the portrait's own z comes from E_mot, and the change of z from the motion model.
        # Here the controls take the place of the motion model.
        change = (clips.taught[:, 1:] - clips.taught[:, :1]).flatten(0, 1)  # [B F, D]
        z = (origin.repeat_interleave(clips.frames, dim=0) + change + noise).detach()
        return _Motion(mean=mean, logvar=logvar, z=z, origin=origin)

    def _divergence(self, motion: _Motion) -> Tensor:
        """Return the weighted KL divergence of z from the standard normal, [B F]."""
        mean, logvar = motion.mean, motion.logvar
        return self.config.kl_weight * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)

    def _motion_terms(self, clips: _Clips, motion: _Motion) -> Tensor:
        """Return the weighted loss terms that train E_mot and the guess network without the UNet, [B F]."""
        taught = clips.taught is not None
        loss = self._controls_error(clips, motion) if taught else self._divergence(motion)
        if self.unet.guess_network:
            loss = loss + self.config.motion_weight * self._guess_error(clips, motion)
        if self.unet.guess_network and clips.landmark_latents is not None:
            error = self._landmark_error(clips, self.unet.guess_network, clips.landmark_latents)
            loss = loss + self.config.landmark_weight * error.repeat_interleave(clips.frames)
        if taught:
            # The controls contain no identity, so z needs no penalty on identity.
            return loss
        means = motion.mean.unflatten(0, (-1, clips.frames))  # [B, F, D]
        shared = shared_part(torch.cat([motion.origin[:, None], means], dim=1))  # [B]
        return loss + self.config.person_weight * shared.repeat_interleave(clips.frames)

    def _controls_error(self, clips: _Clips, motion: _Motion) -> Tensor:
        """Return the weighted squared difference of E_mot's latents and the controls' latents, [B F].

        The error that all frames of a clip have in common weighs little: E_mot cannot know a person's face at rest.
        """
        means = torch.cat([motion.origin[:, None], motion.mean.unflatten(0, (-1, clips.frames))], dim=1)
        error = means - cast(Tensor, clips.taught)  # [B, 1 + F, D]
        common = error.mean(dim=1, keepdim=True)  # [B, 1, D]
        loss = (error - common).square().mean((1, 2)) + _COMMON_WEIGHT * common.square().mean((1, 2))  # [B]
        return self.config.controls_weight * loss.repeat_interleave(clips.frames)

    def _guess_error(self, clips: _Clips, motion: _Motion) -> Tensor:
        """Return the error of the guessed frames and of their edges, the differences of neighbouring pixels: [B F]."""
        # Means over a picture need float32.
        error = self._guess(clips, motion).float() - clips.pictures[:, 1:].flatten(0, 1)  # [B F, 3, S, S]
        weights = torch.ones_like(error[0, 0])  # [S, S]
        weights[region_pixels(MOUTH_REGION, len(weights))] += self.config.mouth_weight
        weights = weights / weights.mean()
        terms = [
            (error, weights),
            (error[..., 1:, :] - error[..., :-1, :], weights[1:]),
            (error[..., 1:] - error[..., :-1], weights[:, 1:]),
        ]
        return sum(((e.abs().mean(1) * w).mean((1, 2)) for e, w in terms), start=error.new_zeros(len(error)))

    def _landmark_error(self, clips: _Clips, network: GuessNetwork, latents: Tensor) -> Tensor:
        """Return the mean absolute error of the landmarks that the guess network moves: [B], in halves of the side.

        Args:
            network: The guess network, which moves the reference's landmarks to where they should be in other frames.
            latents: Latents of the n frames with landmarks, the reference first, [B, n, D].
        """
        count = latents.shape[1] - 1
        change = (latents[:, 1:] - latents[:, :1]).flatten(0, 1)  # [B (n - 1), D]
        references = clips.landmarks[:, 0].repeat_interleave(count, dim=0)  # [B (n - 1), K, 2]
        error = network.moved(references, change) - clips.landmarks[:, 1:].flatten(0, 1)
        return error.abs().mean((1, 2)).unflatten(0, (-1, count)).mean(1)

    def _guess(self, clips: _Clips, motion: _Motion, keep: Tensor | None = None) -> Tensor:
        """Return the frames that the guess network makes by moving their references, [B F, 3, S, S].

        Args:
            keep: False for the windows whose motion is dropped, [N]. Their guess is the unmoved reference.
        """
        # With controls, E_mot learns from the controls alone, and not through the guess.
        origin = motion.origin if clips.taught is None else motion.origin.detach()  # [B, D]
        change = motion.z - origin.repeat_interleave(clips.frames, dim=0)  # [B F, D]
        if keep is not None:
            change = change * keep.repeat_interleave(clips.frames // clips.windows)[:, None]
        references = clips.pictures[:, 0].repeat_interleave(clips.frames, dim=0)  # [B F, 3, S, S]
        landmarks = clips.landmarks[:, 0].repeat_interleave(clips.frames, dim=0)  # [B F, K, 2]
        return cast(GuessNetwork, self.unet.guess_network)(references, landmarks, change)

    def _denoising_error(self, clips: _Clips, motion: _Motion) -> Tensor:
        """Return the squared error of the renderer's prediction for noised frames, [B F].

        Each window has its own noise level.
        """
        device = clips.pictures.device
        with torch.no_grad():
            latents = encode(self.vae, clips.pictures.flatten(0, 1))
            latents = latents.unflatten(0, clips.pictures.shape[:2])  # [B, 1 + F, C, h, w]
        z = motion.z.unflatten(0, (len(latents) * clips.windows, -1))  # [N, W, D]
        # The scheduler computes noise levels in the dtype of the latents. In bf16 the smallest ones would be 0.
        clean = latents[:, 1:].reshape(*z.shape[:2], *latents.shape[2:]).float()  # [N, W, C, h, w]
        keep = torch.cat(clips.draw(lambda g: torch.rand(1, generator=g) >= self.config.motion_drop)).to(
            device
        )
        guess = None
        if self.unet.guess_network:
            with torch.no_grad():
                guess = encode(self.vae, self._guess(clips, motion, keep))
                guess = guess.unflatten(0, z.shape[:2])  # [N, W, C, h, w]
        steps = int(self.scheduler.config["num_train_timesteps"])
        level: Any = torch.cat(clips.draw(lambda g: torch.randint(0, steps, (1,), generator=g))).to(
            device
        )  # [N]
        eps = torch.stack(clips.draw(lambda g: torch.randn(clean.shape[1:], generator=g))).to(device)
        noisy = self.scheduler.add_noise(clean, eps, level)  # [N, W, C, h, w]
        target = (
            self.scheduler.get_velocity(clean, eps, level)
            if self.scheduler.config["prediction_type"] == "v_prediction"
            else eps
        )
        features = self.reference_unet.features(latents[:, 0])
        predicted = predict(self.unet, self.scheduler, noisy, level, z, keep, features, guess)
        error = (predicted - target) ** 2  # [N, W, C, h, w]
        return error.mean(dim=(2, 3, 4)).flatten()


def _mirrored_landmarks(landmarks: Tensor, flips: Tensor) -> Tensor:
    """Return landmarks [B, n, K, 2], mirrored where flips [B] are True."""
    sign = torch.tensor([-1.0, 1.0], device=landmarks.device)
    mirrored = landmarks[:, :, torch.from_numpy(MIRRORED)] * sign
    return torch.where(flips[:, None, None, None], mirrored, landmarks)


def _quarter(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a random square of half the side out of pictures [..., S, S], which is enough to train an autoencoder."""
    side = clip.shape[-1] // 2
    corner = torch.randint(0, clip.shape[-1] - side + 1, (2,), generator=generator)
    rows, columns = (corner[:, None] + torch.arange(side)).to(clip.device)
    return clip[..., rows[:, None], columns]


def shared_part(z: Tensor) -> Tensor:
    """Return the share of n latents [B, n, D] that is common to all n: [B], from about 0 (nothing) to 1 (everything).

    The result is a share and not an amount, because training could reduce an amount by shrinking the latents.
    """
    z = z.float()
    squares = z.square().sum((1, 2))  # [B]
    # Use only products of two different latents, because products of independent noise are zero on average.
    shared = (z.sum(1).square().sum(1) - squares) / (z.shape[1] - 1)  # [B]
    return shared / squares.clamp(min=1e-12)
