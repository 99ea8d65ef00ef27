"""Facts about a model that are read without loading it: whether it is complete, and its fingerprint."""

import hashlib
import json
from dataclasses import dataclass

from pyarrow import NativeFile

from xactor.model_folder import COMPONENTS, config_file
from xactor_platform.storage.location import Location

_SAMPLE_BYTES, _SAMPLES = 4096, 64


@dataclass(frozen=True)
class ModelFacts:
    """Describe a pipeline's folder."""

    fingerprint: str
    """SHA-256 of its configs and of samples of its weights."""
    image_size: int
    """Side of its frames, in pixels."""


def read_model_facts(uri: str) -> ModelFacts:
    """Read a pipeline's configs, and samples of its weights: training changes all of them.

    Args:
        uri: folder or URI of the pipeline.

    Raises:
        ValueError: it is no pipeline. The error names the component that is missing or does not fit.
    """
    place = Location.parse(uri)
    try:
        place.sizes()
    except (OSError, NotADirectoryError) as error:
        raise ValueError(f"{uri}: no such model folder ({error})") from error
    if _json(place, "model_index.json").get("_class_name") != "XActorPipeline":
        raise ValueError(f"{uri}: no pipeline's folder (model_index.json is missing or names another class)")
    configs = _configs(place, uri)
    made, taken = configs["motion"].get("latent_dim"), configs["unet"].get("latent_dim")
    if made != taken:
        raise ValueError(
            f"{uri}: the motion model's latent_dim is {made}, the renderer's is {taken}; they must be equal"
        )
    digest = hashlib.sha256()
    for component in sorted(COMPONENTS):
        files = (info for info in place.entries(component) if info.is_file)
        for info in sorted(files, key=lambda info: info.base_name):
            digest.update(f"{component}/{info.base_name} {info.size}".encode())
            with place.filesystem.open_input_file(info.path) as file:
                _digest_samples(file, info.size, digest)
    vae_scale = 1 << (len(configs["vae"]["block_out_channels"]) - 1)
    return ModelFacts(digest.hexdigest(), int(configs["unet"]["sample_size"]) * vae_scale)


def _configs(place: Location, uri: str) -> dict[str, dict]:
    """Return the components' configs by name. ValueError: a component is missing."""
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


def _digest_samples(file: NativeFile, size: int, digest) -> None:
    if size <= _SAMPLE_BYTES * _SAMPLES:
        digest.update(file.read())
        return
    for number in range(_SAMPLES):
        digest.update(file.read_at(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) * number // (_SAMPLES - 1)))


def _json(place: Location, name: str) -> dict:
    """Return a JSON object, empty where there is no such file or no object in it."""
    try:
        with place.open(name) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{place.uri}/{name}: not readable JSON ({error})") from error
    return found if isinstance(found, dict) else {}
