"""Test that weights at a URI are copied once to a node, and that messages name what is wrong with them."""

import multiprocessing
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from xactor_platform.storage import weights
from xactor_platform.storage.location import Location
from xactor_platform.storage.weights import check_weights, local_weights


@pytest.fixture
def node(tmp_path, monkeypatch) -> Path:
    """Return the folder in which this node keeps its copies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    return tmp_path / "node" / "xactor-weights"


@pytest.fixture
def model(tmp_path) -> Path:
    for component in ("unet", "vae", "safety_checker"):
        folder = tmp_path / "model" / component
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(f'{{"name": "{component}"}}')
        (folder / "weights.safetensors").write_bytes(component.encode() * 1000)
    return tmp_path / "model"


def copies(node: Path) -> list[str]:
    return sorted(p.name for p in node.iterdir() if p.suffix != ".lock")


def test_a_local_folder_is_used_as_it_is(node, model):
    assert local_weights(str(model), "unet") == str(model)
    assert not node.exists()


def test_only_the_wanted_components_are_copied_and_only_once(node, model, capsys):
    first = local_weights(model.as_uri(), "unet", "vae")
    assert {p.name for p in Path(first).iterdir()} == {"unet", "vae"}
    assert (Path(first) / "vae" / "weights.safetensors").read_bytes() == b"vae" * 1000
    assert local_weights(model.as_uri(), "unet", "vae") == first
    assert capsys.readouterr().out.count("copying") == 1
    one = local_weights((model / "unet").as_uri())
    assert {p.name for p in Path(one).iterdir()} == {"config.json", "weights.safetensors"}
    # Other weights at the same URI are another copy.
    (model / "unet" / "weights.safetensors").write_bytes(b"new")
    assert (
        Path(local_weights(model.as_uri(), "unet")) / "unet" / "weights.safetensors"
    ).read_bytes() == b"new"
    assert len(copies(node)) == 3


def test_processes_that_ask_together_make_one_copy(node, model, capfd):
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=local_weights, args=(model.as_uri(), "unet", "vae")) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 4
    assert capfd.readouterr().out.count("copying") == 1
    assert len(copies(node)) == 1


def test_a_copy_that_failed_leaves_nothing_and_is_made_again(node, model, monkeypatch):
    copy = weights._copy_file

    def refused(folder, file, target):
        if file.base_name == "weights.safetensors":
            raise PermissionError(f"{file.path}: access denied")
        copy(folder, file, target)

    monkeypatch.setattr(weights, "_copy_file", refused)
    with pytest.raises(OSError, match=r"weights\.safetensors: access denied"):
        local_weights(model.as_uri(), "unet")
    assert copies(node) == []
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(node.parent))
    found = local_weights(model.as_uri(), "unet")
    assert (Path(found) / "unet" / "weights.safetensors").read_bytes() == b"unet" * 1000


def test_missing_weights_are_named(node, model, tmp_path):
    check_weights(str(model / "unet"))
    check_weights((model / "unet").as_uri())
    for folder in (str(tmp_path / "nowhere"), (tmp_path / "nowhere").as_uri()):
        with pytest.raises(FileNotFoundError, match=r"no backbone in .*nowhere: config\.json is missing"):
            check_weights(folder, "backbone")
    with pytest.raises(
        FileNotFoundError, match=r"no weights in file:.*model/text_encoder: no files are there"
    ):
        local_weights(model.as_uri(), "unet", "text_encoder")
    with pytest.raises(ValueError, match="gopher://x: not a location that can be opened"):
        check_weights("gopher://x")


def test_weights_in_a_bucket(node, model):
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = quote(f"127.0.0.1:{server.get_host_and_port()[1]}", safe="")
        options = f"scheme=http&region=us-east-1&allow_bucket_creation=true&endpoint_override={endpoint}"
        uri = f"s3://key:secret@bucket/sd15?{options}"
        place = Location.parse(uri)
        place.filesystem.create_dir("bucket")
        fs.copy_files(str(model), place.path, destination_filesystem=place.filesystem)
        found = Path(local_weights(uri, "unet"))
        assert (found / "unet" / "weights.safetensors").read_bytes() == b"unet" * 1000
        with pytest.raises(
            FileNotFoundError, match=r"no weights in .*bucket/sd15.*: config\.json is missing"
        ):
            check_weights(uri)
        with pytest.raises(OSError, match=r"nowhere.*(NO_SUCH_BUCKET|Bucket does not exist|no files)"):
            local_weights(uri.replace("bucket/sd15", "nowhere/sd15"), "unet")
    finally:
        server.stop()
