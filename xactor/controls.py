"""Define the control track, a face's motion as 57 readable numbers a frame, and its fixed map to motion latents.

A row holds MediaPipe's 51 ARKit blendshapes (0..1, without `_neutral`) and six numbers of head pose. A landmark model
reads it off real video, and the demo corpus is drawn from it.

`embed_controls` replaces a trained motion encoder, for users without stage 1. It is a constant orthogonal map to 512
numbers, and `decode_controls` is its inverse. Such latents carry no identity and nothing but these 57 numbers, so they
span 57 of their 512 dimensions.
"""

import numpy as np

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
# Angles in radians; 0 faces the camera. Pitch > 0 looks down, yaw > 0 turns the face towards the picture's right, roll
# > 0 tilts it clockwise in the picture. Translation in face widths, x to the right and y down, and the log of the
# face's size. These three are relative to the clip's median.
POSE = ("headPitch", "headYaw", "headRoll", "headX", "headY", "headLogScale")
CONTROLS = BLENDSHAPES + POSE
# 57
CONTROL_COUNT = len(CONTROLS)
INDEX = {name: i for i, name in enumerate(CONTROLS)}
LATENT_DIM = 512

# The change of each control that moves the latents by one unit. It is about a standard deviation in talk, so that all
# controls weigh alike in a loss over latents. Those of the mouth are smaller, because viewers notice errors there most.
_SCALES = {
    "brow": 0.15, "cheek": 0.15, "eyeBlink": 0.2, "eyeLook": 0.15, "eyeSquint": 0.15, "eyeWide": 0.1,
    "jawOpen": 0.07, "jaw": 0.1, "mouth": 0.1, "mouthClose": 0.06, "mouthFunnel": 0.08, "mouthPucker": 0.12,
    "mouthSmile": 0.15, "noseSneer": 0.1,
    "headPitch": 0.08, "headYaw": 0.08, "headRoll": 0.06, "headX": 0.06, "headY": 0.06, "headLogScale": 0.05,
}  # fmt: skip


def _scale(name: str) -> float:
    return _SCALES[max((prefix for prefix in _SCALES if name.startswith(prefix)), key=len)]


SCALES = np.array([_scale(name) for name in CONTROLS])  # [57]


def _signs(seed: int = 2508) -> np.ndarray:
    """Return 57 orthogonal columns of +1 and -1: int8 [512, 57].

    They are columns of a Hadamard matrix with random rows negated, so that every latent dimension depends on every
    control. Only integers are used, so that every machine gets the same matrix.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    hadamard = np.ones((1, 1), dtype=np.int8)
    while len(hadamard) < LATENT_DIM:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    columns = 1 + np.argsort(rng.integers(0, 1 << 62, LATENT_DIM - 1))[:CONTROL_COUNT]
    flips = rng.integers(0, 2, (LATENT_DIM, 1), dtype=np.int8) * 2 - 1
    return hadamard[:, columns] * flips


_MAP = _signs().astype(np.float64)  # [512, 57]
_GRID = float(1 << 24)


def embed_controls(controls: np.ndarray) -> np.ndarray:
    """Return the motion latents z of controls [..., 57]: float32 [..., 512], of about unit variance in talk.

    The result is bit-equal on every machine: values are rounded to a grid on which sums are exact in any order.
    """
    controls = _checked(controls, CONTROL_COUNT, "controls")
    on_grid = np.rint(controls / SCALES * _GRID) / _GRID  # [..., 57]
    return (on_grid @ _MAP.T / np.sqrt(CONTROL_COUNT)).astype(np.float32)  # [..., 512]


def decode_controls(z: np.ndarray) -> np.ndarray:
    """Return the controls of motion latents [..., 512], float32 [..., 57]: the inverse of `embed_controls`.

    In latents that a model made, the component that no control explains is dropped.
    """
    z = _checked(z, LATENT_DIM, "z")
    return (z @ _MAP * (np.sqrt(CONTROL_COUNT) / LATENT_DIM) * SCALES).astype(np.float32)  # [..., 57]


def lip_opening(controls: np.ndarray) -> np.ndarray:
    """Return how far the lips are open, float32 [...], from controls [..., 57]: jawOpen minus mouthClose."""
    controls = _checked(controls, CONTROL_COUNT, "controls")
    return (controls[..., INDEX["jawOpen"]] - controls[..., INDEX["mouthClose"]]).astype(np.float32)


def _checked(array: np.ndarray, width: int, name: str) -> np.ndarray:
    """Return the array as float64. ValueError: its last dimension is not `width`, or a number is not finite."""
    array = np.asarray(array, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"{name} must have {width} numbers a frame, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers")
    return array
