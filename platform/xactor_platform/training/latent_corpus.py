"""Find out facts about the corpus of stage 2, the training of the motion model on motion latents and audio features.

The facts are the mean and the standard deviation of the latents, the encoder that made the audio features, and the
origins of latents and features.
"""

import json
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from xactor.audio.origin import saved_origin
from xactor.origin import AUDIO, WORDS, Origin, check_fit
from xactor_platform.data.batch import read_batch
from xactor_platform.data.index import Index
from xactor_platform.data.plan import PlanConfig, plan_epoch
from xactor_platform.storage.location import Location, child_uri, local_copy, sibling_uri
from xactor_platform.storage.retries import with_retries

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
    """Return the folder or URI of the audio encoder that made the audio features, or None if there is none.

    Args:
        shards: folder or URI of the shards. The function looks for a folder `audio_encoder` in this folder, and then
            next to it.
        configured: folder or URI of the encoder that the config names, if any. It takes precedence.

    Raises:
        FileNotFoundError: the configured folder does not exist.
    """
    if configured is not None:
        if not _is_folder(configured):
            raise FileNotFoundError(f"no audio encoder in {configured}: the folder does not exist")
        return configured if "://" in configured else str(Path(configured).absolute())
    if "://" not in shards:
        shards = str(Path(shards).absolute())
    candidates = [child_uri(shards, "audio_encoder")]
    # Nothing lies next to a bucket.
    with suppress(ValueError):
        candidates.append(sibling_uri(shards, "audio_encoder"))
    return next((found for found in candidates if _is_folder(found)), None)


def _is_folder(uri: str) -> bool:
    place = Location.parse(uri)
    info = with_retries(lambda: place.filesystem.get_file_info(place.path), uri)
    return info.type == fs.FileType.Directory


def corpus_origin(index: Index, kind: str, *parts: Origin) -> str | None:
    """Return the origin of the corpus's latents or features, or None if no sample records it. Print notes.

    Args:
        index: the index of the corpus.
        kind: LATENTS or AUDIO of `xactor.origin`.
        *parts: origins that must fit the corpus.

    Raises:
        ValueError: the samples have different origins, or a part does not fit.
    """
    corpus = index.origin(kind)
    notes = check_fit(kind, corpus, *parts)
    missing = int((getattr(index, kind) == "").sum())
    if corpus.name and missing:
        notes.append(
            f"{index.location.uri}: {missing:,} of {index.samples:,} samples were made by a version that did not "
            f"record the origin of {WORDS[kind]}"
        )
    for note in notes:
        print(f"NOTE: {note}", flush=True)
    return corpus.name


def encoder_origin(index: Index, encoder: str) -> Origin:
    """Return the origin of the features that an audio encoder makes.

    The weights of an encoder whose config does not tell the origin are read only if the corpus records an origin.

    Args:
        index: the index of the corpus that the encoder belongs to.
        encoder: folder or URI of the encoder.

    Raises:
        FileNotFoundError, ValueError: the folder holds no audio encoder.
    """
    name = saved_origin(_encoder_config(encoder))
    if name is None and index.origin(AUDIO).name:
        # This needs torch, which takes seconds to import.
        from xactor.audio.encoder import load_audio_encoder

        with local_copy(encoder) as folder:
            name = load_audio_encoder(folder).origin
    return Origin(encoder, name)


def _encoder_config(encoder: str) -> dict[str, Any]:
    """Return the content of an audio encoder's preprocessor_config.json, or {} if it has none."""

    def read() -> bytes:
        with Location.parse(encoder).open("preprocessor_config.json") as file:
            return file.read()

    try:
        return json.loads(with_retries(read, encoder))
    except FileNotFoundError:
        return {}


def audio_feature_warning(shards: str, layers: int, width: int, audio_encoder: str | None) -> str | None:
    """Return a one-line warning if the audio features may differ from the paper's, Wav2Vec2's; otherwise None.

    Args:
        shards: folder or URI of the shards.
        layers: L, the number of encoder layers that the features come from.
        width: F, the width of each layer's features.
        audio_encoder: folder or URI of the encoder that made the features; None if it is not known.
    """
    remedy = "make Wav2Vec2 features by jobs/precompute.py --audio-encoder FOLDER_OF_A_WAV2VEC2_MODEL"
    features = f"the audio features of {shards} ([{layers}, {width}] per frame)"
    if audio_encoder is None:
        return (
            f"{features} have no audio_encoder/, so their encoder is not known and the export will lack it: "
            f"name the encoder's folder by --data.audio-encoder, or {remedy}"
        )
    if _encoder_config(audio_encoder).get("feature_extractor_type") == "LogMelEncoder":
        return f"{features} are log-mel energies, where the paper has Wav2Vec2's: {remedy}"
    return None
