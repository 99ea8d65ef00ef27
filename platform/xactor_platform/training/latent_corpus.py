"""Find out facts about the corpus of stage 2, the training of the motion model on motion latents and audio features.

The facts are the mean and the standard deviation of the latents, and the encoder that made the audio features.
"""

import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from xactor_platform.data.batch import read_batch
from xactor_platform.data.index import Index
from xactor_platform.data.plan import PlanConfig, plan_epoch

MOMENT_FRAMES = 200_000
"""Minimum number of frames from which the mean and the standard deviation are computed. A smaller corpus contributes
all of its frames."""

MIN_STD = 1e-3
"""Lower bound of a standard deviation. Without it, standardising would scale up a dimension that is constant."""


def latent_moments(index: Index, plan: PlanConfig) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of the latents over a random subset of the corpus.

    Both are lists of D numbers, where D is the width of a latent.

    Raises:
        ValueError: no sample can be read.
    """
    count = 0
    total, squares = np.zeros(index.frame_shape.latent_width), np.zeros(index.frame_shape.latent_width)
    order = plan_epoch(index.frames, index.shard, plan, 0)
    for step in range(order.steps):
        for micro_batch in order.step(step):
            # A filler only completes a short last step, and repeats a sample.
            if micro_batch.is_filler:
                continue
            batch = read_batch(index, micro_batch)
            z = batch.motion[batch.mask].astype(np.float64)  # [frames, D]
            count += len(z)
            total = total + z.sum(0)
            squares = squares + (z**2).sum(0)
        if count >= MOMENT_FRAMES:
            break
    if not count:
        raise ValueError(f"{index.location.uri}: no readable sample to take the latents' statistics from")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
    return mean.tolist(), std.tolist()


def check_moments(moments: Any, width: int) -> None:
    """Raise ValueError if moments from a run's config.json are not means and deviations of latents of a width."""
    right_form = isinstance(moments, list | tuple) and len(moments) == 2
    if right_form:
        for numbers in moments:
            right_form &= isinstance(numbers, list) and len(numbers) == width
            right_form &= right_form and all(isinstance(n, int | float) and isfinite(n) for n in numbers)
    if not right_form or min(moments[1]) <= 0:
        raise ValueError(
            f"moments in the run's config.json must be {width} means and {width} deviations > 0: "
            f"restore the file, or use another --run.name"
        )


def find_audio_encoder(shards: str, configured: str | None) -> str | None:
    """Return the folder of the audio encoder that made the audio features, or None if it is not known.

    Args:
        shards: folder or URI of the shards. If it is local, the function looks for a folder `audio_encoder` in this
            folder, and then next to it.
        configured: folder of the encoder that the config names, if any. It takes precedence.

    Raises:
        FileNotFoundError: the configured folder does not exist.
    """
    if configured is not None:
        if not Path(configured).is_dir():
            raise FileNotFoundError(f"no audio encoder in {configured}: the folder does not exist")
        return str(Path(configured).absolute())
    if "://" in shards:
        return None
    folder = Path(shards).absolute()
    candidates = (folder / "audio_encoder", folder.parent / "audio_encoder")
    return next((str(found) for found in candidates if found.is_dir()), None)


def audio_feature_warning(shards: str, layers: int, width: int, audio_encoder: str | None) -> str | None:
    """Return a one-line warning if the audio features may differ from the paper's, Wav2Vec2's; otherwise None.

    Args:
        shards: folder or URI of the shards.
        layers: L, the number of encoder layers that the features come from.
        width: F, the width of each layer's features.
        audio_encoder: local folder of the encoder that made the features; None if it is not known.
    """
    remedy = "make Wav2Vec2 features by jobs/precompute.py --audio-encoder FOLDER_OF_A_WAV2VEC2_MODEL"
    features = f"the audio features of {shards} ([{layers}, {width}] per frame)"
    if audio_encoder is None:
        return (
            f"{features} have no audio_encoder/, so their encoder is not known and the export will lack it: "
            f"name the encoder's folder by --data.audio-encoder, or {remedy}"
        )
    config_file = Path(audio_encoder) / "preprocessor_config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    if config.get("feature_extractor_type") == "LogMelEncoder":
        return f"{features} are log-mel energies, where the paper has Wav2Vec2's: {remedy}"
    return None
