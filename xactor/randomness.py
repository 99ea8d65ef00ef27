"""Make results repeatable: draw random numbers by key, which are the same on any machine and in any order."""

import hashlib

import torch
from torch import Tensor, nn


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator that depends on the key alone, for example (seed, epoch, clip, start)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # A seed of 63 bits, which fits into a signed integer.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def frame_noise(seed: int, purpose: str, first_frame: int, frames: int, width: int) -> Tensor:
    """Return standard normal noise, float32 [frames, width]. Frame n is keyed (seed, purpose, n).

    Args:
        seed: The seed of the video.
        purpose: Name of the use, such as "chunk" or "history". Other uses of the same seed draw other noise.
        first_frame: Absolute number of the first frame.
        frames: Number of frames.
        width: Numbers per frame.
    """
    rows = [
        torch.randn(width, generator=keyed_generator(seed, purpose, frame))
        for frame in range(first_frame, first_frame + frames)
    ]
    return torch.stack(rows) if rows else torch.zeros(0, width)


def into_own_memory(model: nn.Module) -> None:
    """Copy the weights of a loaded model to memory that torch allocates.

    Weights in a memory-mapped file are aligned differently. On a CPU, sums over them round differently from sums over
    the same weights right after training.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
