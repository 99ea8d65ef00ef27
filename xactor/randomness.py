"""What makes results repeat. Randomness by key: the same key draws the same numbers anywhere, in any order."""

import hashlib

import torch
from torch import Tensor, nn


def keyed_generator(*key: str | int) -> torch.Generator:
    """A CPU generator that depends on the key alone, for example (seed, epoch, clip, start)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def frame_noise(seed: int, purpose: str, first_frame: int, frames: int, width: int) -> Tensor:
    """Standard normal noise, each frame keyed (seed, purpose, absolute frame number): float32 [frames, width]."""
    rows = [
        torch.randn(width, generator=keyed_generator(seed, purpose, frame))
        for frame in range(first_frame, first_frame + frames)
    ]
    return torch.stack(rows) if rows else torch.zeros(0, width)


def into_own_memory(model: nn.Module) -> None:
    """Weights of a loaded model to where torch puts them.

    A mapped file has them anywhere, and on a CPU sums over them round otherwise than over the same weights that
    were just trained.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
