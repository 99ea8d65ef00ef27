"""The control track: a face's motion as 57 readable numbers a frame, and a fixed map from it to motion latents.

A row holds MediaPipe's 51 ARKit blendshapes (0..1, without `_neutral`) and six numbers of head pose. It is what a
landmark model reads off real video and what the demo corpus is drawn from.

Where no motion encoder is trained, `embed_controls` stands in for it: a constant orthogonal map to 512 numbers that
`decode_controls` undoes. It remains the choice for those who have no stage 1. Such latents carry no identity and
nothing but these 57 numbers, so they span 57 of their 512 dimensions.
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
# Radians: pitch > 0 looks down, yaw > 0 turns the face towards the picture's right, roll > 0 tilts it clockwise as
# seen; 0 faces the camera. Translation in face widths, x right and y down, and the log of the face's size; these
# three are relative to the clip's median.
POSE = ("headPitch", "headYaw", "headRoll", "headX", "headY", "headLogScale")
CONTROLS = BLENDSHAPES + POSE
CONTROL_COUNT = len(CONTROLS)  # 57
INDEX = {name: i for i, name in enumerate(CONTROLS)}
LATENT_DIM = 512

# One unit of each control in the latents. About a standard deviation in talk, so that each control weighs alike in a
# loss over latents; the mouth's are smaller still, because a viewer forgives a brow sooner than a lip.
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
    """57 orthogonal columns of +1 and -1: int8 [512, 57], made from integers alone so that every machine has these.

    Columns of a Hadamard matrix, its rows flipped: no latent dimension is constant, each hears every control.
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
    """Controls [..., 57] to motion latents z, float32 [..., 512], of about unit variance in talk.

    The same bits on every machine: values are rounded to a grid on which sums are exact in whatever order.
    """
    controls = _checked(controls, CONTROL_COUNT, "controls")
    on_grid = np.rint(controls / SCALES * _GRID) / _GRID  # [..., 57]
    return (on_grid @ _MAP.T / np.sqrt(CONTROL_COUNT)).astype(np.float32)  # [..., 512]


def decode_controls(z: np.ndarray) -> np.ndarray:
    """Motion latents [..., 512] to controls, float32 [..., 57]: the exact inverse of `embed_controls`.

    Of latents that a model made, the part that no control explains is dropped.
    """
    z = _checked(z, LATENT_DIM, "z")
    return (z @ _MAP * (np.sqrt(CONTROL_COUNT) / LATENT_DIM) * SCALES).astype(np.float32)  # [..., 57]


def lip_opening(controls: np.ndarray) -> np.ndarray:
    """How far the lips part, [..., 57] -> float32 [...]: the jaw's opening less what the lips take back."""
    controls = _checked(controls, CONTROL_COUNT, "controls")
    return (controls[..., INDEX["jawOpen"]] - controls[..., INDEX["mouthClose"]]).astype(np.float32)


def _checked(array: np.ndarray, width: int, name: str) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"{name} must have {width} numbers a frame, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array
