"""Read facts about a model without loading it: its fingerprint, the size of its frames, and whether it is complete."""

import hashlib
import json
import logging
from dataclasses import dataclass

from pyarrow import NativeFile

from xactor.model_folder import COMPONENTS, check_origins, config_file, located
from xactor_platform.storage.location import Location

# The fingerprint covers only excerpts of a large file: the size of an excerpt in bytes, and the number of excerpts.
_EXCERPT_BYTES, _EXCERPTS = 4096, 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """Hold facts about the folder of a pipeline, the set of models that makes videos."""

    fingerprint: str
    """SHA-256 of the configs and of excerpts of the weights."""
    image_size: int
    """Side of the model's frames, in pixels."""


def read_model_facts(uri: str) -> ModelFacts:
    """Read a pipeline's configs and excerpts of its weights. Excerpts suffice, because training changes all weights.

    Args:
        uri: folder or URI of the pipeline, or `box`.

    Raises:
        ValueError: the folder holds no pipeline. The error names the component that is missing or does not fit.
    """
    uri = located(uri)
    place = Location.parse(uri)
    try:
        place.sizes()
    except (OSError, NotADirectoryError) as error:
        raise ValueError(f"{uri}: no such model folder ({error})") from error
    if _json(place, "model_index.json").get("_class_name") != "XActorPipeline":
        raise ValueError(f"{uri}: not a pipeline folder (model_index.json is missing or names another class)")
    configs = _configs(place, uri)
    motion_dim, renderer_dim = configs["motion"].get("latent_dim"), configs["unet"].get("latent_dim")
    if motion_dim != renderer_dim:
        raise ValueError(
            f"{uri}: latent_dim is {motion_dim} in motion/config.json and {renderer_dim} in unet/config.json; "
            f"they must be equal"
        )
    for note in check_origins(dict.fromkeys(COMPONENTS, uri)):
        logger.warning("%s", note)
    digest = hashlib.sha256()
    for component in sorted(COMPONENTS):
        files = (info for info in place.entries(component) if info.is_file)
        for info in sorted(files, key=lambda info: info.base_name):
            digest.update(f"{component}/{info.base_name} {info.size}".encode())
            with place.filesystem.open_input_file(info.path) as file:
                _digest_excerpts(file, info.size, digest)
    # The UNet's sample_size is in latent pixels. Each block of the VAE except one halves the picture's side.
    vae, unet = configs["vae"], configs["unet"]
    try:
        vae_scale = 1 << (len(vae["block_out_channels"]) - 1)
        # Frames are `guess_scale` times larger than the UNet's pictures.
        side = int(unet["sample_size"]) * vae_scale * int(unet.get("guess_scale", 1))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{uri}: unet/config.json and vae/config.json do not give the frames' size ({error!r})"
        ) from error
    return ModelFacts(digest.hexdigest(), side)


def _configs(place: Location, uri: str) -> dict[str, dict]:
    """Return the configs by component, except the audio encoder's. Raise ValueError if a component is missing."""
    configs = {}
    for component in COMPONENTS:
        if component == "audio_encoder":
            if not place.entries(component):
                raise ValueError(f"{uri}: the component {component}/ is missing")
            continue
        name = config_file(component)
        configs[component] = _json(place, f"{component}/{name}")
        if not configs[component]:
            raise ValueError(f"{uri}: the component {component}/ is missing (no {name})")
    return configs


def _digest_excerpts(file: NativeFile, size: int, digest) -> None:
    """Add a small file to a digest. Of a large file, add excerpts that are spread evenly over the file."""
    if size <= _EXCERPT_BYTES * _EXCERPTS:
        digest.update(file.read())
        return
    for number in range(_EXCERPTS):
        digest.update(file.read_at(_EXCERPT_BYTES, (size - _EXCERPT_BYTES) * number // (_EXCERPTS - 1)))


def _json(place: Location, name: str) -> dict:
    """Return the JSON object of a file, or an empty dict if there is no such file or it holds another JSON value.

    Raises:
        ValueError: the file cannot be read, or is not JSON.
    """
    try:
        with place.open(name) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{place.uri}/{name}: not readable JSON ({error})") from error
    return found if isinstance(found, dict) else {}
