"""Make results repeatable: random numbers depend on a key alone, not on the machine or on the order of the draws."""

import hashlib

import torch
from torch import Tensor, nn


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator whose numbers depend on the key alone, for example on (seed, epoch, clip, start)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # A seed of 63 bits, which fits into a signed integer.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def frame_noise(seed: int, purpose: str, first_frame: int, frames: int, width: int) -> Tensor:
    """Return standard normal noise, float32 [frames, width]. The key of frame n's noise is (seed, purpose, n).

    Args:
        seed: The seed of the video.
        purpose: Use of the noise, such as "chunk" or "history". Different purposes get different noise.
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
    """Copy the weights of a loaded model, in place, to memory that torch allocates.

    Weights in a memory-mapped file are aligned differently from weights that torch allocates. On a CPU, sums over them
    are therefore rounded differently from sums over the same weights right after training.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
