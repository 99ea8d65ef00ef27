"""What can be read off latents by a linear map, for reports."""

from collections.abc import Callable

import numpy as np

_RIDGE = 1e-2  # of the latents' variance: what varies less than a tenth of the rest counts for little


def fit_linear(known: np.ndarray, wanted: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression of `wanted` [N, K] on latents [N, D]: what maps others [M, D] to [M, K]."""
    centre, mean = known.mean(0), wanted.mean(0)
    x = known.astype(np.float64) - centre
    gram = x.T @ x + _RIDGE * x.var() * x.shape[1] * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (wanted - mean))  # [D, K]
    return lambda asked: (asked - centre) @ weight + mean
