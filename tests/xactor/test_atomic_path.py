"""Test that files and folders appear complete or not at all."""

from pathlib import Path

import pytest

from xactor.atomic_path import atomic_path


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    target = tmp_path / "video.mp4"
    target.write_text("old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def write(target: Path, *, folder: bool, error: BaseException | None = None) -> None:
    with atomic_path(target) as partial:
        if folder:
            partial.mkdir()
            (partial / "weights").write_text("new")
        else:
            partial.write_text("new")
        if error:
            raise error


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_nothing_behind(tmp_path, folder):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", folder=folder, error=KeyboardInterrupt())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("first")
    with pytest.raises(OSError, match="not empty"):
        write(target, folder=True)
    assert (target / "weights").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]
