"""Save an audio or motion encoder next to the shards whose features or latents it made."""

import json
from pathlib import Path

from xactor.origin import AUDIO, LATENTS
from xactor_platform.storage.location import Location


def save_encoder(folder: Path, target: str) -> None:
    """Copy an encoder's local folder to a folder or URI. Files that the target already holds must have equal content.

    Configs that an earlier version of this project wrote may lack an origin. They are replaced.

    Raises:
        ValueError: the target holds another encoder, which is not replaced, because existing shards were made with it.
    """
    location = Location.parse(target)
    location.filesystem.create_dir(location.path, recursive=True)
    existing = location.sizes()
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        if file.name in existing:
            is_config = file.suffix == ".json"
            stored = b""
            if is_config or existing[file.name] == len(data):
                with location.open(file.name) as stream:
                    stored = stream.read()
            if stored == data:
                continue
            if not (is_config and _lacks_only_origins(json.loads(stored), json.loads(data))):
                raise ValueError(
                    f"{target}: holds another {file.name} than is used now: choose another output, or remove "
                    f"this folder and the shards next to it"
                )
        with location.atomic_write(file.name) as stream:
            stream.write(data)


def _lacks_only_origins(stored: dict, wanted: dict) -> bool:
    """Return whether a stored config becomes the wanted one when the wanted origins are added."""
    origins = {kind: wanted[kind] for kind in (LATENTS, AUDIO) if kind in wanted}
    return {**origins, **stored} == wanted
