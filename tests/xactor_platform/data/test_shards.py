"""Test that other readers can read shards, that every run writes the same bytes, and that no shard is incomplete."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.storage.location import Location


def test_webdatasets_own_reader_reads_the_samples(corpus, sample):
    folder = corpus([5, 9, 3], samples_per_shard=2)
    names = sorted(p.name for p in Path(folder).iterdir())
    assert names == ["train-000000.tar", "train-000001.tar"]
    read = []
    # The test opens the files, because webdataset leaves its own to the garbage collector.
    for name in names:
        with (Path(folder) / name).open("rb") as stream:
            read += group_by_keys(tar_file_expander([{"url": name, "stream": stream}]))
    assert [r["__key__"] for r in read] == ["train-0000", "train-0001", "train-0002"]
    for i, (r, frames) in enumerate(zip(read, (5, 9, 3), strict=True)):
        wrote = sample(frames, seed=i)
        np.testing.assert_array_equal(np.load(io.BytesIO(r["motion.npy"])), wrote["motion.npy"])
        np.testing.assert_array_equal(np.load(io.BytesIO(r["audio.npy"])), wrote["audio.npy"])
        assert {k: v for k, v in json.loads(r["json"]).items() if k != "crc32"} == wrote["json"]


def test_two_runs_write_the_same_bytes(tmp_path, sample):
    for run in ("a", "b"):
        with ShardWriter(str(tmp_path / run), "train", samples_per_shard=2) as writer:
            for i in range(5):
                writer.write(f"clip{i}", sample(4 + i))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_shard_is_whole_or_absent(tmp_path, sample):
    def write_until_the_power_is_cut():
        with ShardWriter(str(tmp_path), "train", samples_per_shard=2) as writer:
            for i in range(3):
                writer.write(f"clip{i}", sample(4))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_until_the_power_is_cut()
    assert [p.name for p in tmp_path.iterdir()] == ["train-000000.tar"]


def test_a_shard_also_ends_at_a_number_of_bytes(tmp_path):
    with ShardWriter(str(tmp_path), "train", bytes_per_shard=1000) as writer:
        for i in range(4):
            writer.write(f"clip{i}", {"mp4": bytes(600), "json": {"frames": 5, "fps": 25}})
    assert writer.shards == 2


def test_earlier_shards_are_kept_or_replaced_as_a_whole(tmp_path, sample):
    for count in (3, 1):
        with ShardWriter(str(tmp_path), "train", samples_per_shard=1, overwrite=True) as writer:
            for i in range(count):
                writer.write(f"clip{i}", sample(4))
    with pytest.raises(
        FileExistsError, match=r"already holds 1 shards of 'train', the first train-000000\.tar"
    ):
        ShardWriter(str(tmp_path), "train").__enter__()
    # A split whose name begins with that of the first one is another split.
    with ShardWriter(str(tmp_path), "train-b") as writer:
        writer.write("other", sample(4))


def test_the_index_of_replaced_shards_is_replaced_too(tmp_path):
    # A tar is padded, so both have the same size and the size does not show that the index is stale.
    for text in ("short", "rather longer"):
        with ShardWriter(str(tmp_path), "train", overwrite=True) as writer:
            writer.write("clip", {"mp4": bytes(9), "json": {"frames": 4, "fps": 25, "text": text}})
        assert load_index(str(tmp_path)).read_meta(0)["text"] == text


def test_a_file_uri_is_a_location(tmp_path, sample):
    with ShardWriter((tmp_path / "x").as_uri(), "train") as writer:
        writer.write("clip", sample(4))
    assert list(Location.parse(str(tmp_path / "x")).sizes()) == ["train-000000.tar"]
    with pytest.raises(ValueError, match="nosuch://place: not a location"):
        Location.parse("nosuch://place")


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_a_key_that_would_be_cut_is_refused(tmp_path, sample, key):
    with ShardWriter(str(tmp_path), "train") as writer, pytest.raises(ValueError, match="a key must not"):
        writer.write(key, sample(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"json": None}, "json must be a mapping"),
        ({"json": {"frames": 4, "fps": 30}}, "clip: json fps must be 25, got 30"),
        ({"json": {"frames": 0, "fps": 25}}, "clip: json frames must be a whole number >= 1, got 0"),
        ({"json": {"frames": 5, "fps": 25}}, "clip: motion.npy has 4 frames, its json says 5"),
        ({"motion.npy": np.zeros((4, 6))}, "clip: motion.npy must be float16 or float32, got float64"),
        (
            {"audio.npy": np.zeros((4, 6), np.float16)},
            r"clip: audio.npy must have 3 axes, got shape \[4, 6\]",
        ),
        ({"audio.npy": np.full((4, 1, 1), np.nan, np.float16)}, "clip: audio.npy holds NaN or infinity"),
    ],
)
def test_a_sample_that_readers_would_refuse_is_refused(tmp_path, sample, change, message):
    with ShardWriter(str(tmp_path), "train") as writer, pytest.raises(ValueError, match=message):
        writer.write("clip", sample(4) | change)


def test_missing_members_and_repeated_keys_are_refused(tmp_path, sample):
    with ShardWriter(str(tmp_path), "train") as writer:
        writer.write("clip", sample(4))
        with pytest.raises(ValueError, match="key 'clip' was already written"):
            writer.write("clip", sample(4))
        with pytest.raises(ValueError, match=r"one: needs 'motion.npy' and 'audio.npy', or 'mp4'"):
            writer.write("one", {k: v for k, v in sample(4).items() if k != "audio.npy"})
        with pytest.raises(ValueError, match="two: a sample needs its 'json'"):
            writer.write("two", {k: v for k, v in sample(4).items() if k != "json"})
