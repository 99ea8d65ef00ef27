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
# A person's range of opening is that between the quantiles 1 - _OFTEN and _OFTEN. The new speech may exceed it by the
# factor _LARGER, and may always open the lips by _MIN_RANGE, in units of the face, because the person may be silent in
# the footage.
_OFTEN, _LARGER, _MIN_RANGE = 0.95, 1.25, 0.2


class Lips:
    """Hold how one person moves the lips, and aim changes of blendshapes by it.

    Args:
        network: The network that moves the landmarks.
        points: Landmarks of the frames, [T, K, 2] in any unit.
        blendshapes: Blendshapes of the frames, [T, 51].

    Attributes:
        rest: Blendshapes of this person with closed lips, float32 [51]: the median over the most closed lips.
    """

    def __init__(self, network: GuessNetwork, points: np.ndarray, blendshapes: np.ndarray):
        weight = network.displace.weight.detach()
        units = torch.from_numpy(latent_change(np.eye(len(BLENDSHAPES), dtype=np.float32))).to(weight)
        moves = DISPLACEMENT * (units @ weight.T).float().unflatten(1, (-1, 2)).cpu().numpy()  # [51, K, 2]
        # Change of the measures for a change of each blendshape by 1, [51, 2].
        self._slopes = _measures(moves)
        measures = lip_measures(points)
        closed = measures[:, 0] <= np.quantile(measures[:, 0], 1 - _OFTEN)
        self.rest = np.median(blendshapes[closed], axis=0)
        self._closed = np.median(measures[closed], axis=0)  # [2]
        self._range = float(np.quantile(measures[:, 0], _OFTEN) - self._closed[0])
        # The smallest change, in units of the latents, of the blendshapes that speech decides, for a change of the
        # measures by 1, [2, 51].
        scales = SCALES[: len(BLENDSHAPES)] * SPEECH
        self._inverse = np.linalg.pinv(self._slopes * scales[:, None]) * scales

    def fitted(self, motion: np.ndarray) -> np.ndarray:
        """Scale the mouth's part of a motion [T, 51] down if this person opens the lips less than it asks for."""
        asked = float(np.quantile(motion @ self._slopes[:, 0], _OFTEN))
        scale = min(max(_LARGER * self._range, _MIN_RANGE) / max(asked, _MIN_RANGE), 1.0)
        return motion * np.where(SPEECH, scale, 1).astype(np.float32)

    def corrected(self, change: np.ndarray, points: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
        """Return the change of blendshapes, float32 [n, 51], that moves the lips to the right places.

        Args:
            change: The change that blendshapes alone ask for, [n, 51].
            points: Landmarks of the frames, [n, K, 2].
            blendshapes: Blendshapes of the frames, [n, 51].
        """
        wanted = self._closed + (blendshapes + change - self.rest) @ self._slopes  # [n, 2]
        # Lips cannot be more than closed.
        wanted[:, 0] = wanted[:, 0].clip(min=0)
        missing = wanted - lip_measures(points) - change @ self._slopes
        return (change + missing @ self._inverse).astype(np.float32)


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
