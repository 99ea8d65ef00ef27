"""Test sibling URIs, atomic writes and uploads of folders in a location."""

import os
from pathlib import Path

import pytest

from xactor_platform.curation.video_files import size_of
from xactor_platform.storage.files import local_file, open_file
from xactor_platform.storage.location import Location, absolute, check_output, child_uri, sibling_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/shards", "/data/videos"),
        ("/data/shards/", "/data/videos"),
        ("shards", f"{os.getcwd()}/videos"),
        ("s3://bucket/corpus/shards", "s3://bucket/corpus/videos"),
        ("s3://bucket/shards/?region=eu-central-1", "s3://bucket/videos?region=eu-central-1"),
        ("file:///data/shards", "file:///data/videos"),
    ],
)
def test_a_sibling_has_the_same_parent(uri, expected):
    assert sibling_uri(uri, "videos") == expected


def test_a_bucket_has_no_sibling():
    with pytest.raises(ValueError, match="s3://bucket: must be a folder inside the bucket"):
        sibling_uri("s3://bucket", "videos")


def test_a_child_keeps_the_query_options():
    assert child_uri("s3://bucket/runs/?region=x", "tiny") == "s3://bucket/runs/tiny?region=x"
    assert child_uri("runs", "tiny") == "runs/tiny"


def test_absolute_leaves_a_uri_as_it_is():
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert absolute("~/a") == os.path.join(os.path.expanduser("~"), "a")
    assert absolute("a") == os.path.join(os.getcwd(), "a")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    location = Location.parse(str(tmp_path / "run"))
    with location.atomic_write("a/config.json") as stream:
        stream.write(b"old")

    def interrupted() -> None:
        with location.atomic_write("a/config.json") as stream:
            stream.write(b"ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        interrupted()
    assert [p.name for p in (tmp_path / "run" / "a").iterdir()] == ["config.json"]
    assert (tmp_path / "run" / "a" / "config.json").read_bytes() == b"old"


def test_an_upload_removes_the_files_of_a_killed_one(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"1")
    leftover = tmp_path / "run" / ".export.0123abcd.partial"
    leftover.mkdir(parents=True)
    Location.parse(str(tmp_path / "run")).upload_folder(source, "export")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["export"]
    assert (tmp_path / "run" / "export" / "weights").read_bytes() == b"1"


def test_an_output_that_cannot_be_written_to_is_named(tmp_path):
    check_output(str(tmp_path / "new"))
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out: cannot be written to"):
        check_output(str(tmp_path / "file" / "out"))


@pytest.mark.parametrize("name", ["a:b.mp4", "10:30 interview.mp4", "clip:", "s3:x", "x" * 255])
def test_a_relative_path_is_no_uri(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"content")
    with local_file(name) as path:
        assert path.read_bytes() == b"content"
    assert open_file(name)[2] == size_of(name) == 7
    assert Location.parse(".").sizes() == {name: 7}
    with Location.parse(".").atomic_write(name) as stream:
        stream.write(b"new")
    assert Path(name).read_bytes() == b"new"
    if len(name) < 100:
        folder = Path(f"of {name}")
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        Location.parse(f"to {name}").upload_folder(str(folder), name)
        assert Path(f"to {name}", name, name).read_bytes() == b"x"
