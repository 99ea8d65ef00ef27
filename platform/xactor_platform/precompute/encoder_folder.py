"""Save an audio or motion encoder next to the shards whose features or latents it made."""

from pathlib import Path

from xactor_platform.storage.location import Location


def save_encoder(folder: Path, target: str) -> None:
    """Copy an encoder's local folder to a folder or URI. Files that the target already holds must have equal content.

    Raises:
        ValueError: the target holds another encoder, which is not replaced, because existing shards were made with it.
    """
    location = Location.parse(target)
    location.filesystem.create_dir(location.path, recursive=True)
    existing = location.sizes()
    for file in sorted(folder.iterdir()):
        if file.name not in existing:
            with location.atomic_write(file.name) as stream:
                stream.write(file.read_bytes())
            continue
        with location.open(file.name) as stream:
            same = existing[file.name] == file.stat().st_size and stream.read() == file.read_bytes()
        if not same:
            raise ValueError(
                f"{target}: holds another {file.name} than is used now: choose another output, or remove "
                f"this folder and the shards next to it"
            )
