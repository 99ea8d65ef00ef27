"""Make tensors with the names and shapes of the published SyncNet."""

import math

import torch

# Shapes of the weights of the published layers. Each layer has a bias too.
LAYERS = {
    "netcnnaud.0": [64, 1, 3, 3],
    "netcnnaud.4": [192, 64, 3, 3],
    "netcnnaud.8": [384, 192, 3, 3],
    "netcnnaud.11": [256, 384, 3, 3],
    "netcnnaud.14": [256, 256, 3, 3],
    "netcnnaud.18": [512, 256, 5, 4],
    "netfcaud.0": [512, 512],
    "netfcaud.3": [1024, 512],
    "netcnnlip.0": [96, 3, 5, 7, 7],
    "netcnnlip.4": [256, 96, 1, 5, 5],
    "netcnnlip.8": [256, 256, 1, 3, 3],
    "netcnnlip.11": [256, 256, 1, 3, 3],
    "netcnnlip.14": [256, 256, 1, 3, 3],
    "netcnnlip.18": [512, 256, 1, 6, 6],
    "netfclip.0": [512, 512],
    "netfclip.3": [1024, 512],
}
# Widths of the published batch normalisations.
NORMS = {
    "netcnnaud.1": 64,
    "netcnnaud.5": 192,
    "netcnnaud.9": 384,
    "netcnnaud.12": 256,
    "netcnnaud.15": 256,
    "netcnnaud.19": 512,
    "netfcaud.1": 512,
    "netcnnlip.1": 96,
    "netcnnlip.5": 256,
    "netcnnlip.9": 256,
    "netcnnlip.12": 256,
    "netcnnlip.15": 256,
    "netcnnlip.19": 512,
    "netfclip.1": 512,
}


def published_state() -> dict[str, torch.Tensor]:
    """Return random tensors with the published names and shapes.

    `num_batches_tracked` is missing, as in files of old versions of PyTorch.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in LAYERS.items():
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    for name, width in NORMS.items():
        state |= {
            f"{name}.weight": torch.ones(width),
            f"{name}.bias": torch.zeros(width),
            f"{name}.running_mean": torch.zeros(width),
            f"{name}.running_var": torch.ones(width),
        }
    return state
