"""Test what the index makes of the names, copies and damaged files that people have."""

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import members_of, write_tar

from xactor_platform.data.fingerprint import fingerprint, refuse_changed_corpus
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shard_names import is_held_out, resembles_held_out
from xactor_platform.data.shards import ShardWriter


@pytest.mark.parametrize(
    "name",
    [
        *("test-0.tar", "test_000.tar", "val.tar", "VAL-1.TAR", "validation-0.tar", "valid-0.tar"),
        *("dev-0.tar", "eval-0.tar", "evaluation_0.tar", "held-out-0.tar", "heldout0.tar"),
    ],
)
def test_held_out_shards_have_the_names_that_people_use(name):
    assert is_held_out(name)
    assert not resembles_held_out(name)


@pytest.mark.parametrize("name", ["train-0.tar", "testimony-0.tar", "device-0.tar", "values.tar", "a.tar"])
def test_other_words_hold_nothing_out(name):
    assert not is_held_out(name)
    assert not resembles_held_out(name)


def test_look_alikes_and_files_that_are_left_out_are_named(corpus, sample, caplog):
    folder = Path(corpus([5, 9]))
    shard = (folder / "train-000000.tar").read_bytes()
    write_tar(folder / "set-val-0.TAR", members_of("x", sample(5)) + members_of("y", sample(5)))
    (folder / "more.tar.gz").write_bytes(b"x")
    (folder / "._train-000000.tar").write_bytes(b"x")
    (folder / "gone.tar").symlink_to(folder / "nothing")
    (folder / "part2").mkdir()
    (folder / "part2" / "train-000000.tar").write_bytes(shard)
    with caplog.at_level(logging.WARNING):
        index = load_index(str(folder))
    assert index.training().samples == 4
    assert "trained on, not held out: set-val-0.TAR. To hold shards out" in caplog.text
    for name in (
        "more.tar.gz (compressed, which cannot be read from the middle: unpack it to a .tar)",
        "._train-000000.tar (a copy's metadata by macOS)",
        "gone.tar (a link to nothing)",
        "part2/ (a folder with 1 shards)",
    ):
        assert name in caplog.text


@pytest.mark.parametrize("member", ["motion.npy", "audio.npy", "json"])
def test_a_shard_rewritten_in_place_at_its_size_is_indexed_again(tmp_path, sample, member):
    before = sample(5)
    after = dict(before)
    if member == "json":
        after["json"] = before["json"] | {"speaker": "sX"}
    else:
        after[member] = before[member] + np.float16(1)
    shard = tmp_path / "a.tar"
    write_tar(shard, members_of("x", before))
    first = load_index(str(tmp_path))
    size, time_ns = shard.stat().st_size, shard.stat().st_mtime_ns
    write_tar(shard, members_of("x", after))
    os.utime(shard, ns=(time_ns + 1_000_000_000, time_ns + 1_000_000_000))
    assert shard.stat().st_size == size
    second = load_index(str(tmp_path))
    assert first.digest.tolist() != second.digest.tolist()
    with pytest.raises(ValueError, match=r"shards 1 changed \(a\.tar\)"):
        refuse_changed_corpus(fingerprint(first), fingerprint(second), str(tmp_path))


def test_a_copy_of_a_corpus_is_the_same_corpus(corpus, tmp_path):
    folder = corpus([5, 9])
    first = fingerprint(load_index(folder))
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert fingerprint(load_index(str(tmp_path / "copy"))) == first


def test_a_damaged_index_is_made_again_without_blaming_the_storage(corpus, caplog):
    folder = corpus([5, 9])
    load_index(folder)
    stored = Path(folder) / "index.parquet"
    data = bytearray(stored.read_bytes())
    # The first page follows the magic. The description at the file's end stays whole.
    data[4:60] = b"\xff" * 56
    stored.write_bytes(data)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert load_index(folder).samples == 2
    assert time.monotonic() - begun < 5
    assert "is damaged" in caplog.text
    assert load_index(folder).key.tolist() == ["train-0000", "train-0001"]


def test_another_tools_index_is_neither_replaced_nor_deleted(corpus):
    folder = Path(corpus([5]))
    stored = folder / "index.parquet"
    pq.write_table(pa.table({"mine": [1, 2]}), stored)
    before = stored.read_bytes()
    with pytest.raises(ValueError, match=r"index\.parquet: not an index of shards but another tool's table"):
        load_index(str(folder))
    with (
        pytest.raises(ValueError, match="another tool's table: rename or move it"),
        ShardWriter(str(folder), "val"),
    ):
        pass
    assert stored.read_bytes() == before


def test_joined_archives_are_reported(tmp_path, sample):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", members_of(name, sample(5)))
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(joined)
    (tmp_path / "b.tar").unlink()
    with pytest.raises(ValueError, match=r"a\.tar: holds more data after its end marker at byte \d+"):
        load_index(str(tmp_path))


def test_strange_text_spoils_its_own_sample_alone(tmp_path, sample):
    nested = members_of("nested", sample(5))
    nested[2] = ("nested.json", b'{"a":' * 100_000)
    half = members_of("half", sample(5))
    half[2] = ("half.json", b'{"frames": 5, "fps": 25, "speaker": "\\ud800"}')
    latin = members_of("caf\udce9", sample(5))
    write_tar(tmp_path / "a.tar", nested + half + latin + members_of("good", sample(5)))
    index = load_index(str(tmp_path), max_bad_fraction=0.5)
    assert index.key.tolist() == ["half", "good"]
    assert index.speaker.tolist()[0] == "?"
    nested_reason, latin_reason = (bad.reason for bad in index.bad)
    assert nested_reason.startswith("json: cannot be parsed")
    assert latin_reason == "its key is not UTF-8"
    assert load_index(str(tmp_path), max_bad_fraction=0.5).key.tolist() == ["half", "good"]


@pytest.mark.parametrize(
    "meta",
    [b'{"frames": 5, "fps": 25, "sync_confidence": 1%s}' % (b"0" * 400), b'{"frames": 1%s}' % (b"0" * 30)],
)
def test_a_number_that_is_too_large_spoils_its_own_sample_alone(tmp_path, sample, meta):
    large = members_of("large", sample(5))
    large[2] = ("large.json", meta)
    write_tar(tmp_path / "a.tar", large + members_of("good", sample(5)))
    index = load_index(str(tmp_path), max_bad_fraction=0.5)
    assert (index.key.tolist(), [bad.key for bad in index.bad]) == (["good"], ["large"])


def test_a_negative_size_ends_the_scan(tmp_path, sample):
    write_tar(tmp_path / "a.tar", members_of("x", sample(5)))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    # GNU's binary form of -512, and the checksum that fits it.
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"no tar header at byte 0: a size of -512 bytes"):
        load_index(str(tmp_path))


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_byte_of_an_index_is_noticed(corpus, caplog, seed):
    folder = Path(corpus([5, 9, 12]))
    whole = load_index(str(folder))
    stored = folder / "index.parquet"
    good = stored.read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(40):
        data = bytearray(good)
        data[random.integers(4, len(data) - 4)] ^= random.integers(1, 256)
        stored.write_bytes(data)
        try:
            index = load_index(str(folder))
        except ValueError as error:
            # The name under which the description is stored has changed.
            assert "another tool's table" in str(error)  # noqa: PT017
            continue
        assert index.key.tolist() == whole.key.tolist()
        assert index.bad == whole.bad
        assert fingerprint(index) == fingerprint(whole)
        for group in ("offset", "length", "header", "crc"):
            for member, values in getattr(whole, group).items():
                assert getattr(index, group)[member].tolist() == values.tolist()


def test_a_field_of_an_index_that_has_changed_is_noticed(corpus, caplog):
    folder = Path(corpus([5, 9]))
    load_index(str(folder))
    stored = folder / "index.parquet"
    table = pq.read_table(stored)
    about = table.schema.metadata[b"xactor"].replace(b'"bad": []', b'"bad": 7')
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"xactor": about}), stored)
    assert load_index(str(folder)).samples == 2
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("form", ["gnu", "posix", "posix --sparse-version=0.0", "posix --sparse-version=0.1"])
def test_a_sparse_member_spoils_its_own_sample_alone(tmp_path, sample, form):
    files = tmp_path / "files"
    files.mkdir()
    names = []
    for key, frames in (("a", 5), ("holes", 40_000), ("z", 6)):
        members = sample(frames)
        for name, data in members_of(key, members):
            path = files / name
            if name == "holes.motion.npy":
                # Data and holes in turn, more than fit into one header.
                with path.open("wb") as file:
                    file.write(data[:4096])
                    for place in range(65_536, len(data), 65_536):
                        file.seek(place)
                        file.write(data[place : place + 4096])
                    file.truncate(len(data))
            else:
                path.write_bytes(data)
            names.append(name)
    command = ["tar", "--sparse", *f"--format={form}".split(), "-cf", str(tmp_path / "a.tar"), *names]
    subprocess.run(command, cwd=files, check=True)
    index = load_index(str(tmp_path), max_bad_fraction=0.5)
    if len(index.key) == 3:
        pytest.skip("this filesystem or tar keeps no holes")
    assert index.key.tolist() == ["a", "z"]
    assert index.read(1, "motion.npy") == (files / "z.motion.npy").read_bytes()
    (bad,) = index.bad
    assert str(bad) == "a.tar: holes: motion.npy is stored with holes: make the tar without --sparse"
