"""Choose the device of a replica."""

import torch


def replica_device(name: str) -> str:
    """Return the torch device for `auto`, `cpu` or `cuda`. `auto` means `cuda` if the replica sees a GPU, else `cpu`.

    Raises:
        ValueError: The device is `cuda`, but the replica sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "device cuda: this replica sees no GPU; reserve one with gpus, or num_gpus in a config file"
        )
    return "cuda" if available and name != "cpu" else "cpu"
