"""Folders beside folders, local and not."""

import os

import pytest

from xactor_platform.storage.location import beside


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
def test_the_parent_is_the_same(uri, expected):
    assert beside(uri, "videos") == expected


def test_a_bucket_has_none():
    with pytest.raises(ValueError, match="s3://bucket: must be a folder inside the bucket"):
        beside("s3://bucket", "videos")
