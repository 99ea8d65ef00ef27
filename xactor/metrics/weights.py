"""Weight files that metrics run on: what they are called in a report, and models that users bring as TorchScript."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

RANDOM = "random weights"  # of a network that nothing was loaded into


def described(path: Path) -> str:
    """A file's name and digest, for `Score.weights`: 'emonet_8.pth (sha256 5f0c9a1e2b3d)'."""
    return f"{path.name} (sha256 {sha256(path)[:12]})"


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ScriptedModel:
    """A model of the user's own: a TorchScript file that takes pictures [B, 3, H, W] and returns vectors [B, K].

    Raises:
        ValueError: no such file, or none that TorchScript loads.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu"):
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such model (a TorchScript file)")
        try:
            self._model: nn.Module = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from error
        self._path, self._device = path, device
        self.weights = described(path)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Vectors float32 [B, K] on the CPU.

        Raises:
            ValueError: the model does not take the pictures, or returns something else.
        """
        try:
            vectors = self._model(pictures.to(self._device))
        except RuntimeError as error:
            shape = list(pictures.shape)
            cause = str(error).strip().splitlines()[-1]
            raise ValueError(f"{self._path}: does not take pictures {shape} ({cause})") from error
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != len(pictures):
            got = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{self._path}: must return vectors [{len(pictures)}, K], got {got}")
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self._path}: returned NaN or infinite numbers")
        return vectors.float().cpu()
