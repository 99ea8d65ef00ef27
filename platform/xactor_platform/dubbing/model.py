"""What can be said of a model without loading it: whether it is one, and what tells it from others."""

import hashlib
import json
from dataclasses import dataclass

from pyarrow import NativeFile

from xactor.pipeline import PARTS
from xactor_platform.storage.location import Location

_SLICE, _SLICES = 4096, 64


@dataclass(frozen=True)
class ModelFacts:
    """fingerprint: of its configs and of samples of its weights. image_size: the side of its frames."""

    fingerprint: str
    image_size: int


def look_at_model(uri: str) -> ModelFacts:
    """Reads the configs of a pipeline's folder or URI, and slices of its weights: training changes them all.

    Raises:
        ValueError: it is none, naming the part that is missing or does not fit.
    """
    place = Location.parse(uri)
    try:
        place.sizes()
    except (OSError, NotADirectoryError) as error:
        raise ValueError(f"{uri}: no such model folder ({error})") from error
    if _json(place, "model_index.json").get("_class_name") != "XActorPipeline":
        raise ValueError(f"{uri}: no pipeline's folder (model_index.json is missing, or of another)")
    configs = {}
    for part in PARTS:
        if part == "audio_encoder":
            if not place.entries(part):
                raise ValueError(f"{uri}: the part {part}/ is missing")
            continue
        name = "scheduler_config.json" if part.endswith("scheduler") else "config.json"
        configs[part] = _json(place, f"{part}/{name}")
        if not configs[part]:
            raise ValueError(f"{uri}: the part {part}/ is missing (no {name})")
    made, taken = configs["motion"].get("latent_dim"), configs["unet"].get("latent_dim")
    if made != taken:
        raise ValueError(
            f"{uri}: the motion model makes latents of {made} numbers, the renderer takes {taken}"
        )
    digest = hashlib.sha256()
    for part in sorted(PARTS):
        files = (info for info in place.entries(part) if info.is_file)
        for info in sorted(files, key=lambda info: info.base_name):
            digest.update(f"{part}/{info.base_name} {info.size}".encode())
            with place.filesystem.open_input_file(info.path) as file:
                _sample(file, info.size, digest)
    shrink = 1 << (len(configs["vae"]["block_out_channels"]) - 1)
    return ModelFacts(digest.hexdigest(), int(configs["unet"]["sample_size"]) * shrink)


def _sample(file: NativeFile, size: int, digest) -> None:
    if size <= _SLICE * _SLICES:
        digest.update(file.read())
        return
    for number in range(_SLICES):
        digest.update(file.read_at(_SLICE, (size - _SLICE) * number // (_SLICES - 1)))


def _json(place: Location, name: str) -> dict:
    """A JSON file; empty where there is none."""
    try:
        with place.open(name) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{place.uri}/{name}: not JSON that can be read ({error})") from error
    return found if isinstance(found, dict) else {}
