"""Define the control track, a face's motion as 57 named numbers per frame, and its fixed map to motion latents.

A row is one frame: MediaPipe's 51 ARKit blendshapes (0..1, without `_neutral`) and six numbers of head pose. A landmark
model measures control tracks in real videos, and the faces of the demo corpus are drawn from control tracks.

A motion latent z is 512 numbers that describe the facial motion of one frame. A motion encoder, trained in stage 1,
computes z from a picture. `embed_controls` replaces the encoder for users who have not run stage 1: it computes z from
a row of a control track by a constant orthogonal map. `decode_controls` is the inverse map. Such latents contain the 57
numbers and nothing else, so they carry no identity. They span 57 of the 512 dimensions.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BLENDSHAPES = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight",
    "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
# Pitch, yaw and roll are angles in radians; 0 faces the camera. Pitch > 0 looks down, yaw > 0 turns the face towards
# the picture's right, roll > 0 tilts it clockwise in the picture. headX and headY are the position in face widths, x to
# the right and y down. headLogScale is the logarithm of the face's size. These three are relative to the clip's median.
POSE = ("headPitch", "headYaw", "headRoll", "headX", "headY", "headLogScale")
CONTROLS = BLENDSHAPES + POSE
CONTROL_COUNT = len(CONTROLS)  # 57
INDEX = {name: i for i, name in enumerate(CONTROLS)}
LATENT_DIM = 512
ORIGIN = "controls-1"
"""Origin of the latents that `embed_controls` returns; see `xactor.origin`. The number is the version of the map: raise
it whenever a change of the controls, of their scales or of the map changes the latents."""

# The scale of each control, by prefix of the control's name; the longest matching prefix counts. `embed_controls`
# divides each control by its scale. The scale is about the control's standard deviation in speech, so that all controls
# weigh alike in a loss over latents. Mouth controls have smaller scales, because viewers notice errors of the mouth
# most.
_SCALES = {
    "brow": 0.15, "cheek": 0.15, "eyeBlink": 0.2, "eyeLook": 0.15, "eyeSquint": 0.15, "eyeWide": 0.1,
    "jawOpen": 0.07, "jaw": 0.1, "mouth": 0.1, "mouthClose": 0.06, "mouthFunnel": 0.08, "mouthPucker": 0.12,
    "mouthSmile": 0.15, "noseSneer": 0.1,
    "headPitch": 0.08, "headYaw": 0.08, "headRoll": 0.06, "headX": 0.06, "headY": 0.06, "headLogScale": 0.05,
}  # fmt: skip


def _scale(name: str) -> float:
    prefixes = [prefix for prefix in _SCALES if name.startswith(prefix)]
    return _SCALES[max(prefixes, key=len)]


SCALES = np.array([_scale(name) for name in CONTROLS])  # [57]


def _mirrored(name: str) -> str:
    """Return the control that a mirrored face has in place of this one."""
    if name.endswith("Left"):
        return name.removesuffix("Left") + "Right"
    return name.removesuffix("Right") + "Left" if name.endswith("Right") else name


_MIRROR_ORDER = [INDEX[_mirrored(name)] for name in CONTROLS]
_MIRROR_SIGNS = [-1.0 if name in ("headYaw", "headRoll", "headX") else 1.0 for name in CONTROLS]


def _signs(seed: int = 2508) -> np.ndarray:
    """Return 57 orthogonal columns of +1 and -1: int8 [512, 57].

    They are random columns of a Hadamard matrix in which random rows are negated. Every latent dimension depends on
    every control. Only integers are used, so that every machine gets the same matrix. Another seed gives another map,
    which cannot decode the latents of this one.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    hadamard = np.ones((1, 1), dtype=np.int8)
    while len(hadamard) < LATENT_DIM:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    # Choose columns by sorting random keys: this shuffle does not depend on NumPy's version. Column 0 is all ones and
    # is left out.
    columns = 1 + np.argsort(rng.integers(0, 1 << 62, LATENT_DIM - 1))[:CONTROL_COUNT]
    row_signs = rng.integers(0, 2, (LATENT_DIM, 1), dtype=np.int8) * 2 - 1
    return hadamard[:, columns] * row_signs


_MAP = _signs().astype(np.float64)  # [512, 57]
# Grid points per unit of a scaled control. `embed_controls` rounds scaled controls to this grid.
_GRID = float(1 << 24)


def embed_controls(controls: np.ndarray) -> np.ndarray:
    """Return the motion latents z of controls [..., 57]: float32 [..., 512], of about unit variance in speech.

    The result is bit-equal on every machine: values are rounded to a grid on which sums are exact in any order.

    Raises:
        ValueError: The last dimension is not 57, or a number is not finite.
    """
    controls = _checked(controls, CONTROL_COUNT, "controls")
    on_grid = np.rint(controls / SCALES * _GRID) / _GRID  # [..., 57]
    return (on_grid @ _MAP.T / np.sqrt(CONTROL_COUNT)).astype(np.float32)  # [..., 512]


def decode_controls(z: np.ndarray) -> np.ndarray:
    """Return the controls of motion latents [..., 512], float32 [..., 57]: the inverse of `embed_controls`.

    Latents from a model may have a component that no control explains. This component is dropped.

    Raises:
        ValueError: The last dimension is not 512, or a number is not finite.
    """
    z = _checked(z, LATENT_DIM, "z")
    return (z @ _MAP * (np.sqrt(CONTROL_COUNT) / LATENT_DIM) * SCALES).astype(np.float32)  # [..., 57]


def controls_to_latents(controls: "Tensor", latent_dim: int) -> "Tensor":
    """Return the first `latent_dim` components, at most 512, of the latents of controls [..., 57]: [..., latent_dim].

    Training uses this form of `embed_controls`. It computes on the device of `controls` and does not round to a grid.
    """
    import torch

    scales, signs = (torch.as_tensor(a, dtype=controls.dtype, device=controls.device) for a in (SCALES, _MAP))
    return (controls / scales) @ signs[:latent_dim].T / math.sqrt(CONTROL_COUNT)


def mirror_controls(controls: "Tensor") -> "Tensor":
    """Return the controls [..., 57] of the mirrored faces: left and right are exchanged."""
    signs = controls.new_tensor(_MIRROR_SIGNS)
    return controls[..., _MIRROR_ORDER] * signs


def lip_opening(controls: np.ndarray) -> np.ndarray:
    """Return how far the lips are open, float32 [...], from controls [..., 57]: jawOpen minus mouthClose."""
    controls = _checked(controls, CONTROL_COUNT, "controls")
    return (controls[..., INDEX["jawOpen"]] - controls[..., INDEX["mouthClose"]]).astype(np.float32)


def _checked(array: np.ndarray, width: int, name: str) -> np.ndarray:
    """Return the array as float64. Raises ValueError if its last dimension is not `width` or a number is not finite."""
    array = np.asarray(array, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"{name} must have {width} numbers a frame, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers")
    return array
