"""Name the weights of metrics in reports, and run models that users provide as TorchScript."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

# Name of the weights of a network into which no file was loaded.
RANDOM = "random weights"


def described(path: Path) -> str:
    """Return a file's name and digest, for `Score.weights`: 'emonet_8.pth (sha256 5f0c9a1e2b3d)'."""
    return f"{path.name} (sha256 {sha256(path)[:12]})"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ScriptedModel:
    """Run the user's own model: a TorchScript file that maps pictures [B, 3, H, W] to vectors [B, K].

    Args:
        path: The file.
        device: Where the model runs.

    Raises:
        ValueError: The file does not exist, or TorchScript cannot load it.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu"):
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such model (a TorchScript file)")
        try:
            self._model: nn.Module = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path}: not a TorchScript file ({first_line(error)})") from error
        self._path, self._device = path, device
        self.weights = described(path)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Return vectors float32 [B, K] on the CPU.

        Raises:
            ValueError: The model fails on the pictures, or does not return finite vectors.
        """
        try:
            vectors = self._model(pictures.to(self._device))
        except RuntimeError as error:
            shape = list(pictures.shape)
            cause = str(error).strip().splitlines()[-1]
            raise ValueError(f"{self._path}: does not accept pictures {shape} ({cause})") from error
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != len(pictures):
            got = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{self._path}: must return vectors [{len(pictures)}, K], got {got}")
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self._path}: returned NaN or infinite numbers")
        return vectors.float().cpu()
