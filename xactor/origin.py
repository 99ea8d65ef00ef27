"""Name what made motion latents and audio features, and refuse parts that work with different ones.

Two motion encoders make latents of the same shape that mean different things, and so do two audio encoders. An
*origin* is a name for what the numbers mean:

    controls-1                          the embedding of control tracks, `xactor.controls.embed_controls`
    motion-encoder-<digest>             a motion encoder that learned latents of its own
    log-mel-1-<digest>                  log-mel energies; the digest covers the options
    wav2vec2-<digest>                   layers of a Wav2Vec2 model

A motion encoder that learned to read the embedding of control tracks from pictures makes latents of the origin
`controls-1`. Samples of shards and the configs of models record origins. Those that an earlier version of this project
wrote do not, so None is an origin that is not known.

This module imports no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LATENTS = "latent_origin"
"""Entry of configs and of samples' json that holds the origin of motion latents."""
AUDIO = "audio_origin"
"""Entry of configs and of samples' json that holds the origin of audio features."""
WORDS = {LATENTS: "motion latents", AUDIO: "audio features"}
"""Words of messages for the two kinds."""


@dataclass(frozen=True)
class Origin:
    """Say with which latents or features a corpus or a part of a model works."""

    place: str
    """Folder or URI of the corpus or the part, for messages."""
    name: str | None
    """The origin's name. None if it is not known."""


def digest_origin(
    kind: str, settings: Mapping[str, Any], weights: "Mapping[str, Tensor] | None" = None
) -> str:
    """Return `<kind>-<digest>` of an encoder.

    The digest covers weights in float16, in the order of their names. So it does not depend on the files in which they
    are stored, nor on whether they are stored as float32 or float16.

    Args:
        kind: Kind of the encoder.
        settings: Options that change what the encoder makes, as JSON can write them.
        weights: Weights by name.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted((weights or {}).items()):
        digest.update(f"\n{name} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().half().contiguous().numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:16]}"


def check_fit(kind: str, *origins: Origin) -> list[str]:
    """Check that parts work with the same latents or features.

    Args:
        kind: LATENTS or AUDIO.
        *origins: The parts' origins.

    Returns:
        A note if an origin is not known, otherwise an empty list.

    Raises:
        ValueError: Two known origins differ. The message names both, and both places.
    """
    for one, other in pairwise(origin for origin in origins if origin.name):
        if one.name != other.name:
            raise ValueError(
                f"{WORDS[kind]} do not fit: {one.place} works with those of {one.name}, "
                f"{other.place} with those of {other.name}"
            )
    unknown = [origin.place for origin in origins if not origin.name]
    if not unknown:
        return []
    return [
        f"{', '.join(unknown)}: made by a version that did not record the origin of {WORDS[kind]}, so it is not known "
        f"whether they fit"
    ]


def check_loaded(motion: Any, motion_encoder: Any, unet: Any, audio_encoder: Any) -> None:
    """Raise ValueError if loaded components do not work with the same latents and features; see `check_fit`."""
    check_fit(LATENTS, *(_origin(model, LATENTS) for model in (motion, motion_encoder, unet)))
    audio = _origin(motion, AUDIO)
    # The origin of a large audio encoder may take seconds to compute, so do not compute it in vain.
    if audio.name:
        check_fit(AUDIO, audio, Origin("the audio encoder", audio_encoder.origin))


def _origin(model: Any, kind: str) -> Origin:
    """Return an origin from the config of a model. Its place is the folder from which the model was loaded."""
    config = model.config if isinstance(model.config, Mapping) else vars(model.config)
    return Origin(str(config.get("_name_or_path") or f"the {type(model).__name__}"), config.get(kind))
