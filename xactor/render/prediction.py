"""The renderer's prediction: what the UNet says, beside what follows from the guess alone."""

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
    guess: Tensor,
) -> Tensor:
    """The scheduler's prediction for noised latents, [B, F, 4, h, w]. Arguments as `RendererUNet.forward` has them.

    With `guess_spread` s the UNet's output is added to the velocity that is best if latents were normal around the
    guess with deviation s: the skip connection of Karras et al. 2022 (EDM). With x_t = a x + b eps and g the guess,

        E[x] = g + a s^2 / (a^2 s^2 + b^2) (x_t - a g),   v = (a x_t - E[x]) / b.

    So a UNet that says nothing yet renders the guess.
    """
    out = unet(noisy, level, z, keep, reference, guess)
    spread = unet.config["guess_spread"]
    if spread is None:
        return out
    signal = scheduler.alphas_cumprod.to(level.device)[level].to(noisy.dtype)[
        :, None, None, None, None
    ]  # a^2
    noise = 1 - signal
    a, b = signal.sqrt(), noise.sqrt()
    return out + a * b * (1 - spread**2) / (signal * spread**2 + noise) * (noisy - a * guess) - b * guess
