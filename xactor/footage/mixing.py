"""Mix the motion that new speech asks for with the motion that the footage shows, as blendshapes."""

import numpy as np
import torch

from xactor.controls import BLENDSHAPES, CONTROL_COUNT, LATENT_DIM, decode_controls, embed_controls
from xactor.motion import SamplingConfig, stream_motion
from xactor.pipeline import XActorPipeline
from xactor.rates import FPS, SAMPLES_PER_FRAME

# Silence before the speech, in frames, whose motion stands for a face at rest. See `RenderConfig.lead_frames`.
_LEAD_FRAMES = 8
_NOT_CONTROLS = (
    "the model's motion latents are not those of control tracks; footage can be dubbed only with a model whose latents "
    "are, such as the model in the box"
)
# Smallest share of the variance of generated latents that controls must explain.
_MIN_EXPLAINED = 0.5
# The corners of the mouth smile and frown with the rest of the face, so they belong to the acting.
_ACTED_MOUTH = ("mouthSmile", "mouthFrown")
SPEECH = np.array(
    [name.startswith(("jaw", "mouth")) and not name.startswith(_ACTED_MOUTH) for name in BLENDSHAPES]
)
"""Which blendshapes the speech alone decides, bool [51]: those of jaw and lips."""


def speech_motion(
    pipeline: XActorPipeline, samples: np.ndarray, *, seed: int, config: SamplingConfig
) -> np.ndarray:
    """Generate motion for speech: the change of each blendshape from a silent face, float32 [T, 51] at 25 fps.

    Args:
        pipeline: The model.
        samples: The speech, float32 [N], mono, 16 kHz.
        seed: Seed of the motion.
        config: Options of the motion model.

    Raises:
        ValueError: The model's latents are not those of control tracks.
    """
    padded = np.pad(samples, (_LEAD_FRAMES * SAMPLES_PER_FRAME, 0))
    audio = (torch.from_numpy(piece) for piece in pipeline.audio_encoder.stream(padded))
    rows = []
    for piece in stream_motion(pipeline.motion, audio, seed=seed, config=config):  # [n, D] each
        z = piece.float().cpu().numpy()
        if z.shape[1] != LATENT_DIM:
            raise ValueError(_NOT_CONTROLS)
        controls = decode_controls(z)
        if np.square(embed_controls(controls)).mean() < _MIN_EXPLAINED * np.square(z).mean():
            raise ValueError(_NOT_CONTROLS)
        rows.append(controls[:, : len(BLENDSHAPES)])
    motion = np.concatenate(rows)
    return motion[_LEAD_FRAMES:] - motion[0]


def at_times(motion: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Interpolate motion [T, 51] at 25 fps linearly to other times. Before and after it, the face is at rest.

    Args:
        motion: The motion.
        times_s: Times in seconds, [N].
    """
    frames = np.arange(len(motion))
    columns = [np.interp(times_s * FPS, frames, column) for column in motion.T]
    inside = (times_s >= 0) & (times_s * FPS < len(motion))
    return np.stack(columns, axis=1).astype(np.float32) * inside[:, None]


def mixed(footage: np.ndarray, motion: np.ndarray, rest: np.ndarray, acting: float) -> np.ndarray:
    """Return the blendshapes that a dubbed face shows, float32 [N, 51].

    Args:
        footage: Blendshapes of the footage's frames, [N, 51].
        motion: Change of the blendshapes that the speech asks for, [N, 51].
        rest: Blendshapes of this person with closed lips, [51]. The motion starts from them.
        acting: How much the speech decides of brows, cheeks, eyes, smile and frown, 0 to 1. The rest of the share is
            the footage's.
    """
    spoken = np.clip(rest + motion, 0, 1)
    share = np.where(SPEECH, 1.0, acting).astype(np.float32)
    return footage + share * (spoken - footage)


def latent_change(change: np.ndarray) -> np.ndarray:
    """Return the change of motion latents for a change of blendshapes [N, 51]: float32 [N, 512]."""
    return embed_controls(np.pad(change, ((0, 0), (0, CONTROL_COUNT - len(BLENDSHAPES)))))
