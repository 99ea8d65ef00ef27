"""Test that a changed byte of a sample spoils this sample, wherever the byte lies and however the sample is read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from shard_files import members_of, write_tar

from xactor_platform.data.batch import read_batch
from xactor_platform.data.checksums import BLOCK_BYTES, blocks_around, checksums, differs, with_checksums
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import MicroBatch
from xactor_platform.data.shards import ShardWriter
from xactor_platform.data.video import VideoReader


def change(index, row, member, at):
    """Change one byte of a member, and keep size and time of the shard."""
    shard = Path(index.location.path) / index.shard_names[index.shard[row]]
    time_ns = shard.stat().st_mtime_ns
    with shard.open("r+b") as file:
        file.seek(int(index.offset[member][row]) + at)
        old = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([old[0] ^ 1]))
    os.utime(shard, ns=(time_ns, time_ns))


def read(index, *spans):
    row, start, frames = (np.array(values) for values in zip(*spans, strict=True))
    return read_batch(index, MicroBatch(row, start, frames))


@pytest.fixture
def long_clips(tmp_path) -> str:
    """Write two clips of 30,000 frames. Their motion has 360 KB, six blocks."""
    folder = str(tmp_path / "shards")
    generator = np.random.default_rng(0)
    with ShardWriter(folder, "train") as writer:
        for key in ("a", "b"):
            motion = generator.standard_normal((30_000, 6)).astype(np.float16)
            audio = generator.standard_normal((30_000, 1, 1)).astype(np.float16)
            meta = {"frames": 30_000, "fps": 25, "speaker": "s"}
            writer.write(key, {"motion.npy": motion, "audio.npy": audio, "json": meta})
    return folder


@pytest.mark.parametrize("frame", [0, 5461, 15_000, 29_999])
def test_a_changed_byte_spoils_the_windows_that_hold_its_block_and_no_other_clip(long_clips, frame):
    index = load_index(long_clips)
    whole = read(index, (0, 0, 30_000), (1, 0, 30_000))
    assert not whole.bad
    change(index, 0, "motion.npy", int(index.header["motion.npy"][0]) + 12 * frame)
    # The index does not notice the change.
    index = load_index(long_clips)
    first = max(frame - 3, 0)
    (bad,) = read(index, (0, first, 8 if first + 8 <= 30_000 else 30_000 - first), (1, first, 3)).bad
    assert (bad.key, bad.reason) == ("a", "motion.npy differs from its checksum")
    # A window that shares no block with the changed byte is good, and as before.
    far = 12_000 if abs(frame - 12_000) > 11_000 else 25_000
    if frame == 15_000:
        far = 28_000
    window = read(index, (0, far, 100))
    assert not window.bad
    np.testing.assert_array_equal(window.motion[0], whole.motion[0, far : far + 100])


@pytest.mark.parametrize("at", [3, 90, 127, 128, 130])
@pytest.mark.parametrize("member", ["motion.npy", "audio.npy"])
def test_a_changed_byte_of_a_header_or_an_array_spoils_its_clip(corpus, member, at):
    index = load_index(corpus([9, 12]))
    change(index, 1, member, at)
    batch = read(load_index(index.location.uri), (0, 0, 9), (1, 0, 12))
    assert [bad.key for bad in batch.bad] == ["train-0001"]
    assert not batch.motion[1].any()
    with pytest.raises(
        ValueError, match=rf"train-000000.tar: train-0001: {member} differs from its checksum"
    ):
        index.read(1, member)


@pytest.mark.parametrize("member", ["mp4", "controls.npy", "landmarks.npy"])
def test_a_changed_byte_of_a_video_or_a_track_spoils_its_clip(video_corpus, member):
    folder, _ = video_corpus([40, 40], tracks=True)
    index = load_index(folder)
    change(index, 0, member, int(index.length[member][0]) // 2)
    reader = VideoReader(load_index(folder), image_size=32, seed=0, stills=lambda step: None, tracks=True)
    spans = np.array([0, 1]), np.array([0, 0]), np.array([16, 16])
    request = reader.request(MicroBatch(*spans), step=0, epoch=0)
    batch = reader.batch(request, reader.read([request])[0])
    assert [bad.reason for bad in batch.bad] == [f"{member} differs from its checksum"]
    assert batch.weight.tolist() == [0, 1]


def test_a_changed_json_spoils_its_sample_when_it_is_indexed(corpus):
    index = load_index(corpus([9, 12]))
    text = index.read(1, "json")
    change(index, 1, "json", text.index(b'"s1"') + 2)
    (Path(index.location.path) / "index.parquet").unlink()
    again = load_index(index.location.uri, max_bad_fraction=0.5)
    assert again.key.tolist() == ["train-0000"]
    assert again.bad[0].reason == "json: differs from its checksum: remove its crc32 to accept the change"


@pytest.mark.parametrize(
    "crc32", [None, "text", {"motion.npy": 5}, {"motion.npy": "zz"}, {"motion.npy": "00"}]
)
def test_checksums_of_another_form_are_ignored_or_refused(tmp_path, sample, crc32):
    members = sample(5)
    members["json"] = members["json"] | {"crc32": crc32}
    write_tar(tmp_path / "a.tar", members_of("x", members) + members_of("y", sample(5)))
    index = load_index(str(tmp_path), max_bad_fraction=0.5)
    if not isinstance(crc32, dict):
        assert index.key.tolist() == ["x", "y"]
        assert index.crc_of("motion.npy", 0) == b""
        return
    (bad,) = index.bad
    assert bad.key == "x"
    assert "crc32 is not hex" in bad.reason or "its checksums are for another length" in bad.reason


def test_blocks_are_checked_alone():
    data = bytes(range(256)) * 1000
    crc = checksums(data)
    assert len(crc) == 4 * 4
    assert not differs(data, crc)
    for begin, end in ((0, 1), (70_000, 70_001), (65_535, 65_537), (255_999, 256_000), (131_072, 196_608)):
        first, last = blocks_around(begin, end, len(data))
        assert first % BLOCK_BYTES == 0
        assert first <= begin < end <= last <= len(data)
        assert not differs(data[first:last], crc, first)
        assert differs(b"x" + data[first + 1 : last], crc, first)
    assert not differs(b"anything", b"")


def test_a_jsons_checksum_does_not_depend_on_how_it_is_written():
    meta = {"frames": 3, "b": {"y": 0.1, "x": [1, 2]}, "ü": "\ud800", "n": {2: 1, 10: 2}}
    marked = with_checksums(meta, {"mp4": b"x"})
    again = json.loads(json.dumps(json.loads(json.dumps(marked)), indent=3, ensure_ascii=True))
    fields = {name: value for name, value in again.items() if name != "crc32"}
    assert with_checksums(fields, {"mp4": b"x"})["crc32"] == marked["crc32"]
