"""Measure a person's lips by landmarks, and correct a change of blendshapes so that the lips end where they should.

Blendshapes that are read off a frame explain the lips only in part: some persons' lips are open by half their height
before jawOpen rises. The landmarks show it. So what blendshapes leave unexplained, compared with the person's closed
lips, is corrected by the smallest change that moves the landmarks to the right places.
"""

import numpy as np
import torch

from xactor.controls import BLENDSHAPES, SCALES
from xactor.faces.landmarks import INNER_LIPS, MOUTH_CORNERS
from xactor.footage.mixing import SPEECH, latent_change
from xactor.render.guess import DISPLACEMENT, GuessNetwork, face_axes

# Inner edges of the lower and of the upper lip, entries opposite each other, without the corners.
_LOWER, _UPPER = INNER_LIPS[1:10], INNER_LIPS[:10:-1]
# Share of frames whose lips count as closed.
_CLOSED = 0.1


class Lips:
    """Correct changes of blendshapes for one person.

    Args:
        network: The network that moves the landmarks.
        points: Landmarks of the frames, [T, K, 2] in any unit.
        blendshapes: Blendshapes of the frames, [T, 51].
    """

    def __init__(self, network: GuessNetwork, points: np.ndarray, blendshapes: np.ndarray):
        weight = network.displace.weight.detach()
        units = torch.from_numpy(latent_change(np.eye(len(BLENDSHAPES), dtype=np.float32))).to(weight)
        moves = DISPLACEMENT * (units @ weight.T).float().unflatten(1, (-1, 2)).cpu().numpy()  # [51, K, 2]
        # Change of the measures for a change of each blendshape by 1, [51, 2].
        self._slopes = _measures(moves)
        measures = lip_measures(points)
        closed = measures[:, 0] <= np.quantile(measures[:, 0], _CLOSED)
        self._rest = np.median(self._unexplained(measures, blendshapes)[closed], axis=0)  # [2]
        slopes = self._slopes * (SCALES[: len(BLENDSHAPES)] * SPEECH)[:, None]
        # The smallest change in units of the latents for a change of the measures, [2, 51].
        self._inverse = np.linalg.pinv(slopes) * (SCALES[: len(BLENDSHAPES)] * SPEECH)

    def corrected(self, change: np.ndarray, points: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
        """Return the change of blendshapes, float32 [n, 51], that moves the lips to the right places.

        Args:
            change: The change that blendshapes alone ask for, [n, 51].
            points: Landmarks of the frames, [n, K, 2].
            blendshapes: Blendshapes of the frames, [n, 51].
        """
        measures = lip_measures(points)
        wanted = self._rest + (blendshapes + change) @ self._slopes  # [n, 2]
        # Lips cannot be more than closed.
        wanted[:, 0] = wanted[:, 0].clip(min=0)
        missing = wanted - measures - change @ self._slopes
        return (change + missing @ self._inverse).astype(np.float32)

    def _unexplained(self, measures: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
        return measures - blendshapes @ self._slopes


def lip_measures(points: np.ndarray) -> np.ndarray:
    """Return the opening and the width of lips, in units of the face, float64 [T, 2].

    Args:
        points: Landmarks, [T, K, 2] in any unit.
    """
    places = torch.from_numpy(np.ascontiguousarray(points, np.float32))
    inverse = torch.linalg.inv(face_axes(places)).numpy()  # [T, 2, 2]
    return _measures(np.einsum("tij,tkj->tki", inverse, points))


def _measures(points: np.ndarray) -> np.ndarray:
    """Return the opening and the width of lips whose landmarks are given in units of the face, [N, K, 2]: [N, 2]."""
    opening = (points[:, _LOWER, 1] - points[:, _UPPER, 1]).mean(axis=1)
    width = points[:, MOUTH_CORNERS[1], 0] - points[:, MOUTH_CORNERS[0], 0]
    return np.stack([opening, width], axis=1).astype(np.float64)
