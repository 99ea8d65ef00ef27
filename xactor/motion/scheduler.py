"""Define the noise schedule: the forward process, the velocity and the DDIM step, all without state."""

import json
from pathlib import Path

import torch
from torch import Tensor

from xactor.motion.noise_levels import MAX_LEVEL

CONFIG_FILE = "scheduler_config.json"


class MotionScheduler:
    """Define variance-preserving diffusion over noise levels k in 0..1000.

    k = 0 is clean and k = 1000 is pure noise (zero terminal SNR). The paper leaves the schedule open. Ours: the
    cosine schedule alpha = cos(pi/2 k/1000), sigma = sin(pi/2 k/1000). With it, the map from (z, eps) to (z_k, v) is a
    rotation.
    """

    def coefficients(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of levels [..], float32 [.., 1]; exactly (1, 0) at 0 and (0, 1) at 1000."""
        angle = k.double()[..., None] * (torch.pi / 2 / MAX_LEVEL)
        # The cosine of pi/2 is not exactly 0 in floating point.
        alpha = torch.where(k[..., None] >= MAX_LEVEL, 0.0, angle.cos())
        return alpha.float(), angle.sin().float()

    def add_noise(self, z: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """Return z_k = alpha z + sigma eps, [B, T, D], at levels k [B, T]."""
        alpha, sigma = self.coefficients(k)
        return alpha * z + sigma * eps

    def velocity(self, z: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """Return the velocity v = alpha eps - sigma z, which the model learns to predict (Equation 2), [B, T, D]."""
        alpha, sigma = self.coefficients(k)
        return alpha * eps - sigma * z

    def step(self, v: Tensor, z_k: Tensor, k: Tensor, k_next: Tensor) -> Tensor:
        """Return the latents after one DDIM step (Song et al. 2021, Equation 12 with eta = 0), [B, T, D].

        Args:
            v: Predicted velocity, [B, T, D].
            z_k: Latents before the step, [B, T, D].
            k: Each frame's noise level before the step, [B, T].
            k_next: Each frame's noise level after the step, [B, T].
        """
        # 1. Compute the clean latents and the noise that v implies.
        alpha, sigma = self.coefficients(k)
        z = alpha * z_k - sigma * v
        eps = sigma * z_k + alpha * v
        # 2. Mix both at the next level.
        alpha, sigma = self.coefficients(k_next)
        return alpha * z + sigma * eps

    def save_pretrained(self, folder: str | Path) -> None:
        """Write scheduler_config.json to `folder`, which is created if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "MotionScheduler",
            "schedule": "cosine",
            "max_level": MAX_LEVEL,
            "prediction_type": "v_prediction",
        }
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MotionScheduler":
        """Load the scheduler that is saved in `folder`.

        Raises:
            FileNotFoundError: `folder` holds no scheduler_config.json.
            ValueError: The file describes another scheduler.
        """
        config = json.loads((Path(folder) / CONFIG_FILE).read_text())
        kind = config.get("_class_name"), config.get("schedule"), config.get("max_level")
        if kind != ("MotionScheduler", "cosine", MAX_LEVEL):
            raise ValueError(
                f"scheduler in {folder} must be a cosine MotionScheduler of 1000 levels, got {kind}"
            )
        return cls()
