"""Test that video shards yield the frames that were drawn, and that a damaged video spoils only its own samples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from xactor.faces.landmarks import MEAN_LANDMARKS, landmark_frames
from xactor.media import read_frames
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import (
    Cursor,
    MicroBatch,
    PlanConfig,
    plan_epoch,
    planned_steps,
    rank_micro_batches,
)
from xactor_platform.data.stream import PlannedStream
from xactor_platform.data.video import MIN_REFERENCE_DISTANCE, VideoReader, draw_frames
from xactor_platform.storage.location import Location

CONFIG = PlanConfig(micro_batches=2, budget_frames=32, context_frames=16, shuffle_shards=2, whole=True)


def reader_of(index, *, image_size=32, stills=None):
    return VideoReader(index, image_size=image_size, seed=0, stills=lambda step: stills, tracks=True)


def read(reader, rows, starts, *, epoch=0, step=0):
    micro_batch = MicroBatch(np.array(rows), np.array(starts), np.full(len(rows), 16))
    request = reader.request(micro_batch, step=step, epoch=epoch)
    return request, reader.batch(request, reader.read([request])[0])


def spoil(index, row, begin, data=b"\0" * 64):
    """Overwrite a part of a video in its shard. `begin` is where the part begins, as a fraction of the length."""
    offset, length = int(index.offset["mp4"][row]), int(index.length["mp4"][row])
    with (Path(index.location.path) / index.shard_names[index.shard[row]]).open("r+b") as file:
        file.seek(offset + int(begin * length))
        file.write(data)


@given(
    frames=st.integers(1, 32),
    clip=st.integers(1, 200),
    stills=st.none() | st.integers(1, 40),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_targets_begin_in_the_sample_and_the_reference_is_a_second_away_if_possible(
    frames, clip, stills, seed, data
):
    frames = min(frames, clip)
    start = data.draw(st.integers(0, clip - frames))
    *targets, reference = draw_frames((seed, 0, "a", start), start, frames, clip, stills).tolist()
    assert targets == sorted(targets)
    assert all(0 <= n < clip for n in [*targets, reference])
    if stills is None:
        assert targets == list(range(start, start + frames))
    else:
        assert len(targets) == stills
        assert any(start <= target < start + frames for target in targets)

    def distance(n):
        return min(abs(n - target) for target in targets)

    assert distance(reference) >= min(MIN_REFERENCE_DISTANCE, max(map(distance, range(clip))))


def test_a_draw_depends_only_on_its_key():
    def draws(*key):
        return draw_frames(key, 100, 16, 500, 1).tolist()

    assert draws(0, 0, "a", 100) == draws(0, 0, "a", 100)
    many = [draws(0, epoch, key, 100) for epoch in range(20) for key in "abcde"]
    assert {t for t, _ in many} == set(range(100, 116))
    references = [r for _, r in many]
    assert min(references) < 50
    assert max(references) > 400
    assert not [r for r in references if 100 - 9 < r < 116 + 9]


def test_stills_come_from_the_whole_clip():
    many = [draw_frames((0, epoch, "a", 100), 100, 16, 500, 4)[:-1] for epoch in range(40)]
    assert np.min(many) < 50
    assert np.max(many) > 450


@pytest.mark.parametrize("stills", [None, 1, 4])
def test_the_pictures_equal_the_frames_of_the_videos(video_corpus, stills):
    folder, clips = video_corpus([60, 80, 40])
    index = load_index(folder)
    request, batch = read(reader_of(index, stills=stills), [2, 0, 1], [8, 0, 50])
    assert batch.targets.shape == (3, stills or 16, 32, 32, 3)
    for b, row in enumerate([2, 0, 1]):
        truth = list(read_frames(clips[row]))
        assert len(truth) == index.frames[row]
        np.testing.assert_array_equal(batch.targets[b], [truth[n] for n in request.wanted[b, :-1]])
        np.testing.assert_array_equal(batch.references[b], truth[request.wanted[b, -1]])
    assert (batch.weight.tolist(), batch.bad) == ([1, 1, 1], [])


def test_pictures_of_another_size_are_averaged(video_corpus):
    folder, clips = video_corpus([30])
    index = load_index(folder)
    _, batch = read(reader_of(index, image_size=16), [0], [0])
    truth = np.stack(list(read_frames(clips[0]))[:16]).astype(float)
    halves = truth.reshape(16, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(batch.targets[0] - halves).max() <= 1
    _, batch = read(reader_of(index, image_size=64), [0], [0])
    assert batch.targets.shape == (1, 16, 64, 64, 3)


def test_an_object_stores_parallel_reads_give_the_same_pictures(video_corpus):
    folder, _ = video_corpus([60, 80])
    index = load_index(folder)
    remote = fs.SubTreeFileSystem(str(Path(folder).parent), fs.LocalFileSystem())
    elsewhere = replace(index, location=Location("store://videos", remote, "videos"))
    (_, here), (_, there) = (read(reader_of(i), [0, 1], [5, 6]) for i in (index, elsewhere))
    np.testing.assert_array_equal(here.targets, there.targets)


def test_a_video_that_cannot_be_used_weighs_nothing_and_is_named(video_corpus):
    folder, _ = video_corpus([40, 40, 40, 40])
    # Samples of another tool have no checksums.
    index = replace(load_index(folder), crc={})
    spoil(index, 1, 0.0, b"no video" * 30)
    short = index.frames.copy()
    short[2] = 60
    _, batch = read(reader_of(replace(index, frames=short)), [0, 1, 2, 3], [0, 0, 44, 0])
    assert batch.weight.tolist() == [1, 0, 0, 1]
    assert not batch.targets[1:3].any()
    assert batch.targets[3].any()
    assert [b.key for b in batch.bad] == ["train-0001", "train-0002"]
    assert "cannot be decoded" in batch.bad[0].reason
    assert batch.bad[1].reason == "ends after 40 frames, frame 44 was requested"
    (Path(folder) / "train-000000.tar").unlink()
    _, batch = read(reader_of(index), [0], [0])
    assert batch.bad[0].reason.startswith("cannot be read:")


def test_control_tracks_come_with_the_pictures_the_references_first(video_corpus):
    folder, _ = video_corpus([60, 80], tracks=True)
    index = load_index(folder)
    request, batch = read(reader_of(index, stills=4), [1, 0], [50, 0])
    assert batch.controls.shape == (2, 5, 57)
    # In this corpus the first of a frame's 57 controls is the frame's number.
    np.testing.assert_array_equal(batch.controls[:, 1:, 0], request.wanted[:, :-1])
    np.testing.assert_array_equal(batch.controls[:, 0, 0], request.wanted[:, -1])
    # The reference is one of the frames with landmarks. Its landmarks and controls are the first.
    assert batch.landmarks.shape == (2, 8, 165, 2)
    numbers = (batch.landmarks[:, :, 5, 0] * 1000).round()
    np.testing.assert_array_equal(numbers, batch.landmark_controls[:, :, 0])
    np.testing.assert_array_equal(numbers[:, 0], request.wanted[:, -1])
    for row, frames in enumerate((80, 60)):
        assert sorted(numbers[row]) == landmark_frames(frames).tolist()
    # If one sample lacks its landmarks, no landmarks are read for any sample. The same applies to controls.
    index.offset["landmarks.npy"][0] = -1
    assert read(reader_of(index), [1], [0])[1].landmarks is None
    index.offset["controls.npy"][0] = -1
    assert read(reader_of(index), [1], [0])[1].controls is None


def test_a_control_track_that_cannot_be_used_makes_its_sample_bad(video_corpus):
    folder, _ = video_corpus([40, 40, 40], tracks=True)
    # Samples of another tool have no checksums.
    index = replace(load_index(folder), crc={})
    header = 128
    index.offset["controls.npy"][0] += header
    index.length["controls.npy"][1] = header + 30 * 57 * 4
    _, batch = read(reader_of(index), [0, 1, 2], [0, 0, 0])
    assert batch.weight.tolist() == [0, 0, 1]
    assert not batch.targets[:2].any()
    assert not batch.controls[:2].any()
    assert all("controls.npy is not an array" in b.reason for b in batch.bad)
    with (Path(folder) / index.shard_names[index.shard[2]]).open("r+b") as file:
        file.seek(int(index.offset["controls.npy"][2]) + header)
        file.write(np.full(57, np.nan, np.float32).tobytes())
    _, batch = read(reader_of(index), [2], [0])
    assert batch.bad[0].reason == "controls.npy must be finite numbers [frames, 57], got float32 [40, 57]"


def test_a_sample_with_faulty_landmarks_is_bad_and_gets_an_average_face(video_corpus):
    folder, _ = video_corpus([40, 40], tracks=True)
    # Samples of another tool have no checksums.
    index = replace(load_index(folder), crc={})
    index.offset["landmarks.npy"][0], index.length["landmarks.npy"][0] = (
        index.offset["controls.npy"][0],
        index.length["controls.npy"][0],
    )
    _, batch = read(reader_of(index), [0, 1], [0, 0])
    assert batch.weight.tolist() == [0, 1]
    assert batch.bad[0].reason == "landmarks.npy must be finite numbers [8, 165, 2], got float32 [40, 57]"
    np.testing.assert_array_equal(batch.landmarks[0, 0], MEAN_LANDMARKS)


def test_a_storage_that_fails_for_a_moment_makes_no_sample_bad(video_corpus, monkeypatch):
    folder, _ = video_corpus([40])
    index = load_index(folder)
    opened, open_file = [], Location.open

    def fails_once(location, name):
        opened.append(name)
        if len(opened) == 1:
            raise OSError("Connection reset by peer")
        return open_file(location, name)

    monkeypatch.setattr(Location, "open", fails_once)
    _, batch = read(reader_of(index), [0], [0])
    assert batch.bad == []
    assert batch.targets.any()
    assert len(opened) == 2


def test_shards_of_latents_are_refused(corpus):
    with pytest.raises(ValueError, match="holds latents, not videos"):
        reader_of(load_index(corpus([20])))


@pytest.mark.cluster
def test_the_stream_gives_the_plans_pictures_also_after_a_resume(ray_cluster, video_corpus):
    folder, _ = video_corpus([60, 80, 40, 33, 90, 17, 15], samples_per_shard=3)
    index = load_index(folder)
    steps = 2 * plan_epoch(index.frames, index.shard, CONFIG, 0).steps
    switch = steps - 2
    reader = VideoReader(index, image_size=32, seed=0, stills=lambda step: 2 if step < switch else None)

    def run(start: Cursor, done: int, rank: int, ranks: int):
        with PlannedStream(
            reader, CONFIG, rank=rank, ranks=ranks, start=start, steps=steps - done, done=done
        ) as stream:
            return [(b.cursor, b.keys, b.starts.tolist(), b.targets, b.references) for b in stream]

    whole = run(Cursor(), 0, 0, 1)
    assert len(whole) == steps * CONFIG.micro_batches
    # Two stills per sample until `switch`, and then 16 frames.
    assert [len(b[3][0]) for b in whole] == [2] * 2 * switch + [16] * 4
    for number, step in zip(
        range(steps), planned_steps(index.frames, index.shard, CONFIG, Cursor()), strict=False
    ):
        for turn, mine in enumerate(rank_micro_batches(step.micro_batches, 0, 1)):
            request = reader.request(mine, step=number, epoch=step.cursor.epoch)
            expected = reader.batch(request, reader.read([request])[0])
            np.testing.assert_array_equal(whole[2 * number + turn][3], expected.targets)
            np.testing.assert_array_equal(whole[2 * number + turn][4], expected.references)
    done = switch - 1
    rest = run(whole[2 * done][0], done, 1, 2)
    for resumed, plain in zip(rest, whole[2 * done + 1 :: 2], strict=True):
        assert resumed[:3] == plain[:3]
        np.testing.assert_array_equal(resumed[3], plain[3])
