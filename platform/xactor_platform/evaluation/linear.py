"""Fit linear maps from latents to known values, for reports."""

from collections.abc import Callable

import numpy as np

# Ridge penalty, as a fraction of the latents' total variance. It is not multiplied by the number of samples.
_RIDGE = 1e-2


def fit_linear(known: np.ndarray, wanted: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a ridge regression from latents to values.

    Args:
        known: Latents [N, D] whose values are known.
        wanted: Known values [N, K] of these latents.

    Returns:
        A function from latents [M, D] to values [M, K].
    """
    centre, mean = known.mean(0), wanted.mean(0)
    x = known.astype(np.float64) - centre
    gram = x.T @ x + _RIDGE * x.var() * x.shape[1] * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (wanted - mean))  # [D, K]
    return lambda asked: (asked - centre) @ weight + mean
