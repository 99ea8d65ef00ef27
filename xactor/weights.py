"""A model's folder, wherever it is, as a local one."""

import hashlib
import tempfile
from pathlib import Path

from xactor.atomic_path import atomic_path


def local_folder(model: str, *, parts: tuple[str, ...]) -> str:
    """The model's folder, with the given parts of it; fetched once a node where it is a URI such as s3://.

    Raises:
        ValueError: there is no such folder, or a part is missing.
    """
    if "://" not in model:
        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"{model}: no such model folder")
    else:
        from pyarrow import fs  # not needed on a lone machine

        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir(), "xactor-models", name)
        source, path = fs.FileSystem.from_uri(model)
        for part in parts:
            _fetch(source, f"{path}/{part}", folder / part)
    for part in parts:
        if not (folder / part).is_dir():
            raise ValueError(f"{model}: the part {part}/ is missing")
    return str(folder)


def _fetch(source, path: str, target: Path) -> None:
    """A folder that appears whole or not at all; one that is there already is taken."""
    from pyarrow import fs

    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(target) as partial:
            partial.mkdir()
            fs.copy_files(
                path, str(partial), source_filesystem=source, destination_filesystem=fs.LocalFileSystem()
            )
    except FileNotFoundError:
        return
    except OSError:
        # Another replica was first: a folder that is not empty is not replaced.
        if not target.is_dir():
            raise
