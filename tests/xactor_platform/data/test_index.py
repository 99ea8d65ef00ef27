"""Test that the index finds all samples, is rebuilt when it is stale, and names every kind of bad shard in one line."""

import io
import logging
import math
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_files import members_of, write_tar
from webdataset.writer import TarWriter

from xactor_platform.data import index as index_module
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.storage.location import Location


def test_the_index_describes_and_locates_each_sample(corpus, sample):
    index = load_index(corpus([5, 9, 3], samples_per_shard=2))
    assert index.samples == 3
    assert index.key.tolist() == ["train-0000", "train-0001", "train-0002"]
    assert index.frames.tolist() == [5, 9, 3]
    assert index.shard.tolist() == [0, 0, 1]
    assert index.speaker.tolist() == ["s0", "s1", "s2"]
    assert index.sync_confidence.tolist() == [5.5, 5.5, 5.5]
    assert vars(index.frame_shape) == {
        "latent_width": 6,
        "audio_layers": 2,
        "audio_width": 5,
        "motion_dtype": "float16",
        "audio_dtype": "float16",
    }
    assert index.frame_shape.bytes_per_frame == 2 * (6 + 2 * 5)
    for row in range(3):
        wrote = sample(int(index.frames[row]), seed=row)
        assert index.read_meta(row) == wrote["json"]
        for name in ("motion.npy", "audio.npy"):
            data = index.read(row, name)
            np.testing.assert_array_equal(np.load(io.BytesIO(data)), wrote[name])
            assert data[index.header[name][row] :] == wrote[name].tobytes()
    with pytest.raises(KeyError, match="train-0001 has no mp4"):
        index.read(1, "mp4")


def test_the_stored_index_equals_the_scan(corpus):
    folder = corpus([5, 9, 3])
    built, stored = load_index(folder), load_index(folder)
    for name in ("key", "shard", "frames", "speaker", "sync_confidence"):
        np.testing.assert_array_equal(getattr(built, name), getattr(stored, name))
        assert getattr(built, name).dtype == getattr(stored, name).dtype
    for group in ("offset", "length", "header"):
        assert getattr(built, group).keys() == getattr(stored, group).keys()
        for name, values in getattr(built, group).items():
            np.testing.assert_array_equal(values, getattr(stored, group)[name])
    assert (built.shape, built.shard_names, built.shard_sizes) == (
        stored.shape,
        stored.shard_names,
        stored.shard_sizes,
    )


def test_shards_are_scanned_again_only_when_they_change(corpus, monkeypatch):
    folder = corpus([5, 9, 3], samples_per_shard=2)
    assert load_index(folder).samples == 3
    scans = []
    scan = index_module.scan_shard

    def logged_scan(*arguments):
        scans.append(arguments[1])
        return scan(*arguments)

    monkeypatch.setattr(index_module, "scan_shard", logged_scan)
    load_index(folder)
    assert scans == []
    # A shard is added.
    corpus([5, 9], split="val")
    assert load_index(folder).samples == 5
    assert len(scans) == 3
    # A shard is removed.
    (Path(folder) / "train-000001.tar").unlink()
    assert load_index(folder).samples == 4
    (Path(folder) / "index.parquet").write_bytes(b"not parquet")
    assert load_index(folder).samples == 4


def test_held_out_shards_are_recognised_by_their_names(corpus):
    corpus([5, 9])
    corpus([4], split="test")
    index = load_index(corpus([7], split="val"))
    assert sorted(index.training().key) == ["train-0000", "train-0001"]
    assert sorted(index.held_out().key) == ["test-0000", "val-0000"]
    chosen = index.subset(np.flatnonzero(index.frames > 6))
    assert sorted(chosen.key) == ["train-0001", "val-0000"]
    assert set(chosen.offset["audio.npy"]) < set(index.offset["audio.npy"]) | {-1}


def test_a_folder_that_cannot_be_written_is_indexed_each_time(corpus, monkeypatch, caplog):
    folder = corpus([5, 9])

    def refuse(self, name):
        raise PermissionError(13, "read-only", name)

    monkeypatch.setattr(Location, "atomic_write", refuse)
    with caplog.at_level(logging.WARNING):
        assert load_index(folder).samples == 2
    assert "the index is not stored" in caplog.text
    assert not (Path(folder) / "index.parquet").exists()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_folder_that_another_tool_wrote_is_indexed(tmp_path, sample, form):
    key = "deep/folder/" + "x" * (130 if form != tarfile.USTAR_FORMAT else 60)
    members = members_of(key, sample(5)) + members_of("short", sample(7)) + [("README", b"not a sample")]
    write_tar(tmp_path / "shards-0.tar", members, form)
    index = load_index(str(tmp_path))
    assert index.key.tolist() == [key, "short"]
    np.testing.assert_array_equal(np.load(io.BytesIO(index.read(0, "motion.npy"))), sample(5)["motion.npy"])


def test_a_folder_that_plain_webdataset_wrote_is_indexed(tmp_path, sample):
    with TarWriter(str(tmp_path / "part-0.tar")) as tar:
        tar.write({"__key__": "clip", **sample(5)})
        tar.write({"__key__": "another", **sample(6)})
    index = load_index(str(tmp_path))
    assert index.frames.tolist() == [5, 6]
    np.testing.assert_array_equal(np.load(io.BytesIO(index.read(1, "audio.npy"))), sample(6)["audio.npy"])


def test_a_folder_of_videos_is_indexed(tmp_path):
    with ShardWriter(str(tmp_path), "train") as writer:
        writer.write("clip", {"mp4": b"a video", "json": {"frames": 50, "fps": 25}})
    index = load_index(str(tmp_path))
    assert index.read(0, "mp4") == b"a video"
    assert index.frames.tolist() == [50]
    with pytest.raises(ValueError, match="holds videos, not latents"):
        index.frame_shape  # noqa: B018


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_index(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no \.tar among 0 files"):
        load_index(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"notes.txt is a file, not a folder"):
        load_index(str(tmp_path / "notes.txt"))
    with pytest.raises(ValueError, match=r"max_bad_fraction must be in 0..1, got 2"):
        load_index(str(tmp_path), max_bad_fraction=2)


def without(name):
    """Return a function that removes a member from a sample."""
    return lambda sample: {k: v for k, v in sample.items() if k != name}


def with_members(**members):
    """Return a function that sets members of a sample. An argument's underscores stand for dots."""
    changed = {name.replace("_", "."): value for name, value in members.items()}
    return lambda sample: sample | changed


def meta(**fields):
    """Return a function that sets a sample's json, with some fields changed."""
    return with_members(json={"frames": 5, "fps": 25} | fields)


BAD = [
    (without("audio.npy"), "has no audio.npy"),
    (without("motion.npy"), "has no motion.npy"),
    (without("json"), "has no json"),
    (meta(fps=30), "json: fps must be 25, got 30"),
    (meta(frames=None), "json: frames must be a whole number >= 1, got None"),
    (meta(frames=6), "motion.npy has 5 frames, its json says 6"),
    (with_members(audio_npy=np.zeros((4, 2, 5), np.float16)), "audio.npy has 4 frames, its json says 5"),
    (with_members(motion_npy=np.zeros((5, 6))), "motion.npy: dtype must be float16 or float32, got <f8"),
    (
        with_members(motion_npy=np.zeros((5, 6, 1), np.float16)),
        r"motion.npy: must have 2 axes of at least 1, got shape",
    ),
    (
        with_members(motion_npy=np.zeros((5, 7), np.float16)),
        r"has motion \[7\] float16 and .*, the corpus motion \[6\]",
    ),
    (
        with_members(audio_npy=np.zeros((5, 2, 5), np.float32)),
        r"has .*\[2, 5\] float32 per frame, the corpus",
    ),
    (
        with_members(motion_npy=np.asfortranarray(np.zeros((5, 6), np.float16))),
        "motion.npy: is stored in Fortran order",
    ),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_sample_stops_the_run_or_is_left_out_within_the_bound(tmp_path, sample, spoil, reason):
    members = (
        members_of("good", sample(5)) + members_of("fine", sample(6)) + members_of("bad", spoil(sample(5)))
    )
    write_tar(tmp_path / "a.tar", members)
    bound = r"1 of 3 samples are unusable, a fraction of 0.333; at most 0 \(max_bad_fraction\) may be"
    with pytest.raises(ValueError, match=rf"{bound}: a.tar: bad: {reason}"):
        load_index(str(tmp_path))
    index = load_index(str(tmp_path), max_bad_fraction=0.4)
    assert index.key.tolist() == ["good", "fine"]
    assert [b.key for b in index.bad] == ["bad"]
    # The stored index lists the bad samples too.
    with pytest.raises(ValueError, match=r"at most 0\.2 \(max_bad_fraction\)"):
        load_index(str(tmp_path), max_bad_fraction=0.2)


def test_members_with_wrong_contents_are_reported(tmp_path, sample):
    good = members_of("good", sample(5))
    spoiled = members_of("a", sample(5)) + members_of("b", sample(5)) + members_of("c", sample(5))
    spoiled[0] = ("a.motion.npy", b"no array")
    spoiled[5] = ("b.json", b"{")
    spoiled[7] = ("c.audio.npy", spoiled[7][1][:-10])
    header_only = members_of("d", sample(5)) + members_of("e", sample(5))
    header_only[0] = ("d.motion.npy", b"\x93NUMPY")
    header_only[3] = ("e.motion.npy", header_only[3][1].replace(b"'descr'", b"'dexcr'"))
    write_tar(tmp_path / "a.tar", good + spoiled + header_only)
    reasons = {b.key: b.reason for b in load_index(str(tmp_path), max_bad_fraction=0.9).bad}
    for key in ("a", "d", "e"):
        assert reasons[key].startswith("motion.npy: not a .npy array"), key
    assert reasons["b"].startswith("json: cannot be parsed")
    assert reasons["c"] == "audio.npy: holds 218 bytes, its header says 228"


@pytest.mark.parametrize("length", [b"0", b"x", b"-9", b"9999"])
def test_a_broken_pax_header_ends_the_scan_of_its_shard(tmp_path, sample, length):
    write_tar(tmp_path / "a.tar", members_of("good", sample(5)))
    long_name = "n" * 120
    write_tar(tmp_path / "b.tar", members_of(long_name, sample(5)), form=tarfile.PAX_FORMAT)
    tar = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(re.sub(rb"\d+ path=", length + b" path=", tar, count=1))
    with pytest.raises(ValueError, match=r"b\.tar: .*no pax header at byte 512"):
        load_index(str(tmp_path))


def test_repeated_keys_are_reported(tmp_path, sample):
    once = members_of("x", sample(5))
    write_tar(tmp_path / "a.tar", [*once, *members_of("y", sample(5)), *members_of("x", sample(5))])
    write_tar(tmp_path / "b.tar", members_of("y", sample(5)) + members_of("z", sample(5)))
    index = load_index(str(tmp_path), max_bad_fraction=0.5)
    assert index.key.tolist() == ["x", "y", "z"]
    assert [str(b) for b in index.bad] == [
        "a.tar: x: its members are not adjacent, or its key occurs twice",
        "b.tar: y: the same key is in a.tar",
    ]


def test_a_sample_whose_members_are_not_adjacent_is_reported(tmp_path, sample):
    x, y = members_of("x", sample(5)), members_of("y", sample(5))
    write_tar(tmp_path / "a.tar", [*x[:1], *y, *x[1:]])
    index = load_index(str(tmp_path), max_bad_fraction=0.9)
    assert index.key.tolist() == ["y"]
    assert {b.key for b in index.bad} == {"x"}


@pytest.mark.parametrize("cut", [100, 600, 3000, 3584, 4000, -600, -10, 0])
def test_the_complete_samples_of_a_truncated_shard_are_kept(corpus, cut):
    folder = corpus([5, 6, 7, 8])
    shard = Path(folder) / "train-000000.tar"
    whole, data = load_index(folder), shard.read_bytes()
    ends = np.max([whole.offset[m] + whole.length[m] for m in whole.offset], axis=0)
    # Members are padded to blocks of 512 bytes. A cut of 0 or less counts from the end of the last member: at 0 only
    # the end marker is lost.
    padded_end = math.ceil(int(ends[-1]) / 512) * 512
    end = cut if cut > 0 else padded_end + cut
    shard.write_bytes(data[:end])
    with pytest.raises(ValueError, match=rf"train-000000.tar: .*truncated: .*{end}"):
        load_index(folder)
    if cut < 3000:
        # No complete sample is left.
        return
    index = load_index(folder, max_bad_fraction=0.9)
    assert index.key.tolist() == whole.key[ends <= end].tolist()
    # The earlier index tells which samples are lost. If all are complete, one stands for the lost end marker.
    assert sorted(bad.key for bad in index.bad) == (whole.key[ends > end].tolist() or [""])
    assert all("truncated" in bad.reason for bad in index.bad)
    # Without that index, the shard tells at most its incomplete sample.
    (Path(folder) / "index.parquet").unlink()
    assert len(load_index(folder, max_bad_fraction=0.9).bad) == 1


def test_every_sample_that_a_cut_shard_lost_counts(corpus):
    folder = corpus([5] * 100, samples_per_shard=100)
    shard = Path(folder) / "train-000000.tar"
    load_index(folder)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 20])
    # The second attempt finds an index that was made after the cut.
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"95 of 100 samples are unusable, a fraction of 0\.95; at most 0\.5"
        ):
            load_index(folder, max_bad_fraction=0.5)
    assert load_index(folder, max_bad_fraction=0.95).samples == 5


def test_samples_that_are_gone_are_counted(corpus, caplog):
    folder = corpus([5] * 9, samples_per_shard=3)
    load_index(folder)
    (Path(folder) / "train-000001.tar").unlink()
    assert load_index(folder).samples == 6
    assert "gone since the shards were indexed: train-000001.tar (3 of 3 samples)" in caplog.text
    # Zeros from the second sample of the last shard on are an end marker.
    whole = load_index(folder)
    end = min(int(offsets[4]) for offsets in whole.offset.values()) - 512
    shard = Path(folder) / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:end] + bytes(shard.stat().st_size - end))
    os.utime(shard, (0, 0))
    assert load_index(folder).samples == 4
    assert "gone since the shards were indexed: train-000002.tar (2 of 3 samples)" in caplog.text
    caplog.clear()
    assert load_index(folder).samples == 4
    assert not caplog.text


def test_empty_and_invalid_shards_are_reported(tmp_path, sample):
    write_tar(tmp_path / "a.tar", members_of("x", sample(5)))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "nonsense.tar").write_bytes(b"\x07" * 2048)
    index = load_index(str(tmp_path), max_bad_fraction=0.9)
    assert [str(b) for b in index.bad] == [
        "empty.tar: truncated: ends at byte 0 without an end marker",
        "nonsense.tar: no tar header at byte 0: invalid header",
    ]
