"""List the components of a model, and find its folder or copy it from an object store. This module imports no torch."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xactor.origin import AUDIO, LATENTS, Origin, check_fit

MOTION_COMPONENTS = ("motion", "motion_scheduler")
"""The components that stage 2, the training of the motion model, produces."""

RENDERER_COMPONENTS = ("motion_encoder", "unet", "reference_unet", "vae", "scheduler")
"""The components that stage 1, the training of the renderer and the motion encoder, produces."""

COMPONENTS = (
    "motion", "motion_scheduler", "motion_encoder", "audio_encoder", "unet", "reference_unet", "vae", "scheduler",
)  # fmt: skip
"""All components of a model folder. Each has a folder of its name."""


# Maximum length of a library's message in an error.
_MAX_REASON_CHARS = 500
BOX = "box"
"""The name of the model that comes with this package. Each node of a cluster uses the copy in its own installation."""


def located(model: str | Path) -> str:
    """Return the folder or URI of a model, given its folder, its URI or the name BOX.

    Raises:
        ValueError: The package was installed without the model `box`.
    """
    if str(model) != BOX:
        return str(model)
    folder = Path(__file__).with_name(BOX)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: this installation has no model in the box; give a model folder")
    return str(folder)


def downloaded(model: str, options: Mapping[str, Any]) -> str:
    """Download a model if `model` is a name on the Hugging Face hub. Return its local folder.

    Args:
        model: A folder, or a name `owner/model` on the hub.
        options: Options of the download.

    Raises:
        ValueError: The hub has no such model or cannot be reached.
    """
    if Path(model).is_dir() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return model
    # Imported here, because only pipelines come from the hub.
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model, **options)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{model}: no such folder, and the hub gives no such model: {why}") from error


def config_file(component: str) -> str:
    """Return the name of a component's config file. An audio encoder may have preprocessor_config.json instead."""
    return "scheduler_config.json" if component.endswith("scheduler") else "config.json"


def check_origins(folders: Mapping[str, str | Path]) -> list[str]:
    """Check that the components of a model work with the same motion latents and the same audio features.

    Only configs are read. A component without a config, or with a damaged one, is not checked, because loading it
    reports the fault.

    Args:
        folders: The folder or URI that holds each component's folder, by component.

    Returns:
        Notes about origins that are not known; see `xactor.origin`.

    Raises:
        ValueError: Two components do not fit. The message names their origins and folders.
    """
    # Imported here, because it imports NumPy, which takes a while.
    from xactor.audio.origin import saved_origin

    files = {"audio_encoder": "preprocessor_config.json"}
    configs = {
        name: _read_json(folders[name], f"{name}/{files.get(name, 'config.json')}")
        for name in ("motion", "motion_encoder", "unet", "audio_encoder")
        if name in folders
    }
    places = {name: f"{_without_query(str(folder))}/{name}" for name, folder in folders.items()}
    latents = [
        Origin(places[name], configs[name].get(LATENTS))
        for name in ("motion", "motion_encoder", "unet")
        if configs.get(name)
    ]
    audio = [Origin(places["motion"], configs["motion"].get(AUDIO))] if configs.get("motion") else []
    if configs.get("audio_encoder"):
        audio.append(Origin(places["audio_encoder"], saved_origin(configs["audio_encoder"])))
    return check_fit(LATENTS, *latents) + check_fit(AUDIO, *audio)


def _without_query(uri: str) -> str:
    """Return a URI without its query options, which may hold keys. In a local path, `?` is an ordinary character."""
    return uri.partition("?")[0] if "://" in uri else uri


def _read_json(folder: str | Path, name: str) -> dict[str, Any]:
    """Return the JSON object of a file in a folder or at a URI, or {} if there is no such file or it is damaged.

    Raises:
        ValueError: The storage cannot be read.
    """
    try:
        if "://" not in str(folder):
            found = json.loads(Path(folder, name).read_text(encoding="utf-8"))
        else:
            # Imported here, because models on local disks must work without pyarrow.
            from pyarrow import fs

            source, path = fs.FileSystem.from_uri(str(folder))
            with source.open_input_file(f"{path}/{name}") as file:
                found = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise ValueError(f"{_without_query(str(folder))}/{name}: {error}") from error
    return found if isinstance(found, dict) else {}


@contextmanager
def loading(folder: str | Path, component: str, kind: str) -> Iterator[None]:
    """Turn any error of the block, which loads one component of a model folder, into one line.

    Torch, transformers, diffusers and safetensors raise errors of many types for files that are damaged.

    Args:
        folder: The model folder.
        component: The component that the block loads.
        kind: Name of the component's class.

    Raises:
        ValueError: The block raised an error. The message names the folder and the component.
    """
    try:
        yield
    except Exception as error:
        # torch lists every weight that does not fit.
        why = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        raise ValueError(f"{folder}: the component {component}/ is no {kind}: {why}") from error


def local_folder(model: str, *, components: tuple[str, ...]) -> str:
    """Return a local folder with the given components of a model.

    A model at a URI such as s3:// is copied to the temporary folder, once per node.

    Args:
        model: A model folder, as a path or a URI, or the name BOX.
        components: The components that are needed.

    Raises:
        ValueError: There is no such folder, or a component is missing.
    """
    model = located(model)
    if "://" not in model:
        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"{model}: no such model folder")
    else:
        # Imported here, because models on local disks must work without pyarrow.
        from pyarrow import fs

        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir(), "xactor-models", name)
        source, path = fs.FileSystem.from_uri(model)
        for component in components:
            _fetch(source, f"{path}/{component}", folder / component)
    for component in components:
        if not (folder / component).is_dir():
            raise ValueError(f"{model}: the component {component}/ is missing")
    return str(folder)


def _fetch(source, path: str, target: Path) -> None:
    """Copy a folder atomically, unless `target` exists. A missing source is ignored: the caller reports it."""
    from pyarrow import fs

    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as partial:
        try:
            fs.copy_files(
                path, partial, source_filesystem=source, destination_filesystem=fs.LocalFileSystem()
            )
        except FileNotFoundError:
            return
        try:
            Path(partial).rename(target)
        except OSError:
            # Another process on this node may have copied the folder meanwhile.
            if not target.is_dir():
                raise
        else:
            # TemporaryDirectory removes its folder at the end of the block, so create the folder again.
            Path(partial).mkdir()
