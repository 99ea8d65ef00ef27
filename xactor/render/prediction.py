"""Compute the renderer's prediction: the UNet's output plus the prediction that follows from the guess alone.

The guess is a first version of the frames: the portrait, moved by the guess network (guess.py).
"""

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
    """Return the prediction for noised latents, of the scheduler's prediction type: float32 [B, F, C, h, w].

    Without a guess, or if the UNet's config has no `guess_spread`, this is the UNet's output.

    With `guess_spread` s, the result is a velocity. The UNet's output corrects the velocity that would be best if clean
    latents x were normally distributed around the guess g with standard deviation s. This is the preconditioning of
    Karras et al. 2022 (EDM). With the noised latents x_t = a x + b eps,

        E[x] = g + a s^2 / (a^2 s^2 + b^2) (x_t - a g),   v = (a x_t - E[x]) / b.

    The output is multiplied by the standard deviation of the true velocity around this v, s / sqrt(a^2 s^2 + b^2). So a
    UNet whose output is zero renders the guess, and a correction that is as large as the error of the guess needs an
    output of about unit variance.

    Args:
        unet: The UNet.
        scheduler: Gives a^2, the signal's share, at each noise level.
        noisy: Noised latents x_t. This and the other arguments are those of `RendererUNet.forward`.
    """
    out = unet(noisy, level, z, keep, reference, guess).float()  # [B, F, C, h, w]
    spread = unet.config["guess_spread"]
    if spread is None or guess is None:
        return out
    # Compute in float32: in bf16 the smallest noise levels would be 0.
    signal = scheduler.alphas_cumprod.to(level.device)[level].float()  # a^2, [B]
    signal = signal[:, None, None, None, None]  # [B, 1, 1, 1, 1]
    noise = 1 - signal  # b^2
    a, b = signal.sqrt(), noise.sqrt()
    # Variance of the UNet's input x_t around a g.
    variance = signal * spread**2 + noise
    return (
        spread / variance.sqrt() * out + a * b * (1 - spread**2) / variance * (noisy - a * guess) - b * guess
    )
