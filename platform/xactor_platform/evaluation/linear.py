"""Fit linear maps from latents to known values, for reports."""

from collections.abc import Callable

import numpy as np

# Share of the latents' variance. Directions that vary less than a tenth of the rest count for little.
_RIDGE = 1e-2


def fit_linear(known: np.ndarray, wanted: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a ridge regression from latents to values.

    Args:
        known: Latents [N, D].
        wanted: Their values [N, K].

    Returns:
        A function from latents [M, D] to values [M, K].
    """
    centre, mean = known.mean(0), wanted.mean(0)
    x = known.astype(np.float64) - centre
    gram = x.T @ x + _RIDGE * x.var() * x.shape[1] * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (wanted - mean))  # [D, K]
    return lambda asked: (asked - centre) @ weight + mean
