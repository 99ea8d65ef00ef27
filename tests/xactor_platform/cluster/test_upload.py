"""Test that an upload that is too large for Ray is refused with one line, which names the largest folder."""

import os
from types import SimpleNamespace

import pytest
from ray.exceptions import RuntimeEnvSetupError

from xactor_platform.cluster import connect as connect_module
from xactor_platform.cluster.local import LocalCluster
from xactor_platform.cluster.upload import SUBMIT_MAX_BYTES, check_upload


@pytest.fixture
def checkout(tmp_path):
    """Write a checkout with 3 MiB of weights and 1 MiB of code."""
    for name, mib in (("weights/a/model.bin", 2), ("weights/b.bin", 1), ("jobs/train.py", 1)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(mib << 20))
    return tmp_path


def test_the_largest_folder_is_named_with_its_size(checkout):
    check_upload(checkout, 4 << 20)
    with pytest.raises(ValueError, match=r"4\.0 MiB of files, at most 3\.0 MiB.*weights/ with 3\.0 MiB"):
        check_upload(checkout, 3 << 20)


@pytest.mark.parametrize("file", [".rayignore", ".gitignore"])
def test_ignored_files_do_not_count(checkout, file):
    (checkout / file).write_text("/weights/\n")
    check_upload(checkout, 2 << 20)


def test_this_checkout_fits_with_weights_next_to_its_code(pytestconfig, tmp_path):
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((pytestconfig.rootpath / name).read_text())
    for name in ("weights", "model", "demo", "runs"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            os.truncate(file.fileno(), SUBMIT_MAX_BYTES + 1)
    check_upload(tmp_path, SUBMIT_MAX_BYTES)
    check_upload(pytestconfig.rootpath, SUBMIT_MAX_BYTES)


def test_a_submission_that_is_too_large_fails_in_one_line(tmp_path, capsys):
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), SUBMIT_MAX_BYTES + 1)
    cluster = LocalCluster("127.0.0.1:1", "http://127.0.0.1:1", dict(os.environ))
    assert cluster.submit(["python", "--version"], working_dir=tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "w.bin with 100.0 MiB" in line


def test_modules_that_are_too_large_are_named(checkout, monkeypatch):
    def refuse(**options):
        raise RuntimeEnvSetupError("Failed to upload module")

    # The patches keep the test session's own Ray and environment unchanged.
    monkeypatch.setattr(connect_module, "ray", SimpleNamespace(init=refuse, shutdown=lambda: None))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    monkeypatch.setattr(connect_module, "PY_MODULES_MAX_BYTES", 3 << 20)
    with pytest.raises(ValueError, match=r"too large to upload to Ray: .*weights/ with 3\.0 MiB"):
        connect_module.connect([str(checkout)])
    monkeypatch.setattr(connect_module, "PY_MODULES_MAX_BYTES", 4 << 20)
    with pytest.raises(RuntimeEnvSetupError):
        connect_module.connect([str(checkout)])
