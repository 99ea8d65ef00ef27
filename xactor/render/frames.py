"""Convert pictures between the layouts of files and of models."""

import numpy as np
import torch
from torch import Tensor


def to_model(frames: np.ndarray | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Convert pictures uint8 [..., H, W, 3] to [..., 3, H, W] in [-1, 1]."""
    if isinstance(frames, np.ndarray):
        # np.require copies a read-only array, because torch would warn about it.
        frames = torch.from_numpy(np.require(frames, requirements="W"))
    frames = frames.to(device)
    # Compute in float32 and round once: in bf16 the division alone would be wrong by half a level.
    return (frames.movedim(-1, -3).float() / 127.5 - 1).to(dtype)


def from_model(frames: Tensor) -> np.ndarray:
    """Convert pictures [..., 3, H, W] in [-1, 1] to uint8 [..., H, W, 3]."""
    pixels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous().cpu().numpy()
