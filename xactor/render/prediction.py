"""Compute the renderer's prediction: the UNet's output plus the prediction that follows from the guess alone."""

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from xactor.render.attention import ReferenceFeatures
from xactor.render.unet import RendererUNet


def predict(
    unet: RendererUNet,
    scheduler: DDIMScheduler,
    noisy: Tensor,
    level: Tensor,
    z: Tensor,
    keep: Tensor,
    reference: ReferenceFeatures,
    guess: Tensor | None,
) -> Tensor:
    """Return the scheduler's prediction for noised latents, [B, F, C, h, w].

    With `guess_spread` s, the UNet's output corrects the best velocity for latents that are normally distributed around
    the guess with standard deviation s. This is the preconditioning of Karras et al. 2022 (EDM). With
    x_t = a x + b eps and g the guess,

        E[x] = g + a s^2 / (a^2 s^2 + b^2) (x_t - a g),   v = (a x_t - E[x]) / b.

    The output is multiplied by v's standard deviation around this, s / sqrt(a^2 s^2 + b^2). So a UNet whose output is
    zero renders the guess, and an output of unit variance corrects it by as much as the guess is wrong.

    Args:
        unet: The UNet; the arguments from `noisy` to `guess` are those of its `forward`.
        scheduler: Gives a^2, the signal's share, at each level.
    """
    out = unet(noisy, level, z, keep, reference, guess)  # [B, F, C, h, w]
    spread = unet.config["guess_spread"]
    if spread is None or guess is None:
        return out
    signal = scheduler.alphas_cumprod.to(level.device)[level].to(noisy.dtype)  # a^2, [B]
    signal = signal[:, None, None, None, None]  # [B, 1, 1, 1, 1]
    noise = 1 - signal  # b^2
    a, b = signal.sqrt(), noise.sqrt()
    variance = signal * spread**2 + noise  # of the UNet's input x_t around a g
    return (
        spread / variance.sqrt() * out + a * b * (1 - spread**2) / variance * (noisy - a * guess) - b * guess
    )
