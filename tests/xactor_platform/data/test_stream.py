"""Test that the stream yields the plan's micro-batches in order for any number of ranks, and never hangs."""

import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ray
from pyarrow import fs
from ray.util.placement_group import placement_group, remove_placement_group
from webdataset.writer import TarWriter

from xactor_platform.data import stream as stream_module
from xactor_platform.data.batch import Arena, LatentReader, read_batch
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import (
    Cursor,
    MicroBatch,
    PlanConfig,
    plan_epoch,
    planned_steps,
    rank_micro_batches,
)
from xactor_platform.data.reading import Raw
from xactor_platform.data.shards import ShardWriter
from xactor_platform.data.stream import PlannedStream
from xactor_platform.storage.location import Location

LENGTHS = [5, 40, 12, 33, 9, 21, 70, 8, 15, 27, 31, 6]
CONFIG = PlanConfig(micro_batches=4, budget_frames=64, context_frames=32, shuffle_shards=2)


def micro_batch(index, *spans):
    """Return a micro-batch of samples that are given by row, start and number of frames."""
    row, start, frames = map(np.array, zip(*spans, strict=True))
    return MicroBatch(row, start, frames)


def samples_of(batch):
    return list(
        zip(batch.keys, batch.starts.tolist(), batch.frames.tolist(), batch.weight.tolist(), strict=True)
    )


def expected(index, config, rank, ranks, start, steps):
    """Return the steps and batches that a rank should get, read without Ray."""
    return [
        (step, read_batch(index, mine))
        for step in islice(planned_steps(index.frames, index.shard, config, start), steps)
        for mine in rank_micro_batches(step.micro_batches, rank, ranks)
    ]


def test_a_batch_holds_each_samples_frames_padded_with_zeros(corpus, sample):
    index = load_index(corpus(LENGTHS))
    batch = read_batch(index, micro_batch(index, (1, 8, 32), (0, 0, 5), (6, 64, 6)))
    assert batch.motion.shape == (3, 32, 6)
    assert batch.audio.shape == (3, 32, 2, 5)
    assert batch.motion.dtype == np.float32
    assert batch.audio.dtype == np.float32
    assert batch.frames.tolist() == [32, 5, 6]
    assert batch.mask.sum(1).tolist() == [32, 5, 6]
    for b, (row, start, frames) in enumerate([(1, 8, 32), (0, 0, 5), (6, 64, 6)]):
        wrote = sample(LENGTHS[row], seed=row)
        np.testing.assert_array_equal(batch.motion[b, :frames], wrote["motion.npy"][start : start + frames])
        np.testing.assert_array_equal(batch.audio[b, :frames], wrote["audio.npy"][start : start + frames])
        assert not batch.motion[b, frames:].any()
        assert not batch.audio[b, frames:].any()


def test_an_object_stores_parallel_reads_give_the_same_batch(corpus):
    folder = corpus(LENGTHS)
    index = load_index(folder)
    remote = fs.SubTreeFileSystem(str(Path(folder).parent), fs.LocalFileSystem())
    elsewhere = replace(index, location=Location("store://shards", remote, "shards"))
    assert not elsewhere.location.is_local
    step = plan_epoch(index.frames, index.shard, CONFIG, 0).step(0)
    for mine in step:
        np.testing.assert_array_equal(read_batch(index, mine).audio, read_batch(elsewhere, mine).audio)


def test_float32_members_are_read_as_they_are(tmp_path, sample):
    wrote = sample(7)
    wrote["audio.npy"] = wrote["audio.npy"].astype(np.float32) * 1.0001
    with ShardWriter(str(tmp_path), "train") as writer:
        writer.write("clip", wrote)
    index = load_index(str(tmp_path))
    assert index.frame_shape.audio_dtype == "float32"
    np.testing.assert_array_equal(
        read_batch(index, micro_batch(index, (0, 2, 5))).audio[0], wrote["audio.npy"][2:]
    )


def spoil(index, row, member, value=np.inf):
    """Overwrite the eleventh float16 number of a member in its shard."""
    with (Path(index.location.path) / index.shard_names[index.shard[row]]).open("r+b") as file:
        file.seek(int(index.offset[member][row] + index.header[member][row]) + 2 * 10)
        file.write(np.float16(value).tobytes())


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("member", ["motion.npy", "audio.npy"])
def test_a_sample_with_nan_or_infinity_weighs_nothing_and_is_named(corpus, member, value):
    index = load_index(corpus([5, 6, 7]))
    spoil(index, 1, member, value)
    batch = read_batch(index, micro_batch(index, (0, 0, 5), (1, 0, 6), (2, 0, 7)))
    assert batch.weight.tolist() == [1, 0, 1]
    assert not batch.motion[1].any()
    assert not batch.audio[1].any()
    assert batch.motion[2].any()
    assert [str(b) for b in batch.bad] == ["train-000000.tar: train-0001: holds NaN or infinity"]
    assert np.isfinite(batch.audio).all()


def test_a_shard_that_vanished_or_changed_is_named(corpus):
    folder = corpus([5, 6, 7], samples_per_shard=1)
    index = load_index(folder)
    (Path(folder) / "train-000000.tar").unlink()
    data = (Path(folder) / "train-000001.tar").read_bytes()
    (Path(folder) / "train-000001.tar").write_bytes(data.replace(b"'shape': (6, 6)", b"'shape': (6, 9)"))
    (Path(folder) / "train-000002.tar").write_bytes(data[:700])
    batch = read_batch(index, micro_batch(index, (0, 0, 5), (1, 0, 6), (2, 0, 7)))
    assert batch.weight.tolist() == [0, 0, 0]
    reasons = [b.reason for b in batch.bad]
    assert reasons[0].startswith("cannot be read:")
    assert reasons[1] == "is <f2 [6, 9], the index says float16 [6, 6]"
    assert "the index says" in reasons[2]


def test_an_arena_reuses_a_buffer_only_when_nobody_holds_it():
    arena = Arena()
    first = arena.take((4, 5))
    view, place = first[1:], first.ctypes.data
    del first
    assert arena.take((4, 5)).ctypes.data != place
    del view
    assert arena.take((2, 5)).ctypes.data == place


@pytest.mark.cluster
class TestOnRay:
    @pytest.fixture(autouse=True)
    def small_blocks(self, ray_cluster, monkeypatch):
        """Make blocks of several micro-batches and executions of several blocks, so that all boundaries are crossed."""
        monkeypatch.setattr(stream_module, "BLOCK_BYTES", 3 * 64 * 32)
        monkeypatch.setattr(stream_module, "SEGMENT_BLOCKS", 5)

    @pytest.fixture
    def index(self, corpus):
        return load_index(corpus(LENGTHS, samples_per_shard=3))

    def test_the_stream_yields_the_plans_batches_over_epochs_and_executions(self, index):
        steps = 3 * plan_epoch(index.frames, index.shard, CONFIG, 0).steps
        want = expected(index, CONFIG, 0, 1, Cursor(), steps)
        with PlannedStream(
            LatentReader(index), CONFIG, rank=0, ranks=1, start=Cursor(), steps=steps
        ) as stream:
            got = list(stream)
        assert len(want) == steps * CONFIG.micro_batches
        assert len(got) == len(want)
        for batch, (step, plain) in zip(got, want, strict=True):
            assert samples_of(batch) == samples_of(plain)
            assert (batch.cursor, batch.step_frames) == (step.cursor, step.frames)
            np.testing.assert_array_equal(batch.motion, plain.motion)
            np.testing.assert_array_equal(batch.audio, plain.audio)
        fillers = [b for b in got if not b.weight.any()]
        assert fillers
        assert not any(b.audio.any() for b in fillers)

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_ranks_share_the_same_samples(self, index, ranks):
        def run(rank, of):
            with PlannedStream(
                LatentReader(index), CONFIG, rank=rank, ranks=of, start=Cursor(), steps=4
            ) as stream:
                return [(batch.cursor, *s) for batch in stream for s in samples_of(batch)]

        dealt = [run(rank, ranks) for rank in range(ranks)]
        assert sorted(s for mine in dealt for s in mine) == sorted(run(0, 1))

    def test_a_resumed_stream_equals_an_uninterrupted_one(self, index):
        def run(start, steps):
            with PlannedStream(
                LatentReader(index), CONFIG, rank=1, ranks=2, start=start, steps=steps
            ) as stream:
                return [(b.cursor, samples_of(b), b.motion.copy()) for b in stream]

        whole = run(Cursor(), 6)
        turns = CONFIG.micro_batches // 2
        rest = run(whole[2 * turns][0], 4)
        assert [r[:2] for r in rest] == [w[:2] for w in whole[2 * turns :]]
        for (_, _, resumed), (_, _, plain) in zip(rest, whole[2 * turns :], strict=True):
            np.testing.assert_array_equal(resumed, plain)

    def test_a_sample_found_bad_when_read_is_reported(self, index):
        spoil(index, 3, "motion.npy")
        steps = plan_epoch(index.frames, index.shard, CONFIG, 0).steps
        with PlannedStream(
            LatentReader(index), CONFIG, rank=0, ranks=1, start=Cursor(), steps=steps
        ) as stream:
            bad = [b for batch in stream for b in batch.bad]
        assert {b.key for b in bad} == {index.key[3]}
        # Other parts of the sample, whose numbers are finite, fail too if they share a block with the changed number.
        reasons = [b.reason for b in bad]
        assert reasons.count("holds NaN or infinity") == 1
        assert set(reasons) <= {"holds NaN or infinity", "motion.npy differs from its checksum"}

    def test_a_folder_that_plain_webdataset_wrote_is_streamed(self, tmp_path, sample):
        with TarWriter(str(tmp_path / "part-0.tar")) as tar:
            for i, frames in enumerate(LENGTHS):
                tar.write({"__key__": f"clip{i}", **sample(frames, seed=i)})
        index = load_index(str(tmp_path))
        steps = plan_epoch(index.frames, index.shard, CONFIG, 0).steps
        with PlannedStream(
            LatentReader(index), CONFIG, rank=0, ranks=1, start=Cursor(), steps=steps
        ) as stream:
            frames = sum(int(b.mask.sum()) for b in stream)
        assert frames == sum(LENGTHS)

    def test_closing_early_ends_the_execution(self, index):
        def executors():
            return [t for t in threading.enumerate() if "StreamingExecutor" in t.name or "planned" in t.name]

        stream = PlannedStream(LatentReader(index), CONFIG, rank=0, ranks=1, start=Cursor(), steps=10_000)
        next(stream)
        assert executors()
        stream.close()
        deadline = time.monotonic() + 20
        while executors() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not executors()
        with pytest.raises(StopIteration):
            next(stream)

    def test_reading_ahead_takes_little_cpu_time_while_the_training_is_busy(self, index, monkeypatch):
        monkeypatch.setattr(stream_module, "SEGMENT_BLOCKS", 500)
        reader = LatentReader(index)
        read = reader.read

        def read_large(requests):
            """Add 1 MiB to each batch, so that the read-ahead is soon full."""
            return [
                Raw({**raw.arrays, "more": np.zeros(1 << 20, np.uint8)}, raw.bad) for raw in read(requests)
            ]

        reader.read = read_large
        busy = []
        with PlannedStream(reader, CONFIG, rank=0, ranks=1, start=Cursor(), steps=400) as stream:
            for _ in range(6):
                for _ in range(10):
                    next(stream)
                started = time.process_time()
                time.sleep(1)
                busy.append(time.process_time() - started)
        # `busy` has fractions of a core. Without its limit, the read-ahead would take a whole core.
        assert np.median(busy) < 0.4, busy

    @pytest.fixture
    def hold_cpus(self):
        """Return a function that takes all free CPUs but `leave`.

        Processes of earlier tests may hold some, for ever or until they have ended.
        """
        groups = []

        def hold(leave):
            free, since = 0.0, time.monotonic()
            while time.monotonic() - since < 3:
                time.sleep(0.2)
                before, free = free, ray.available_resources().get("CPU", 0.0)
                if free != before:
                    since = time.monotonic()
            for _ in range(int(free) - leave):
                groups.append(placement_group([{"CPU": 1}]))
                assert groups[-1].wait(30)

        yield hold
        for group in groups:
            remove_placement_group(group)

    def test_one_free_cpu_is_enough_for_the_stream(self, index, hold_cpus):
        hold_cpus(leave=1)
        with PlannedStream(LatentReader(index), CONFIG, rank=0, ranks=2, start=Cursor(), steps=3) as stream:
            assert len(list(stream)) == 3 * CONFIG.micro_batches // 2

    def test_no_free_cpu_is_reported_at_the_start(self, index, hold_cpus):
        hold_cpus(leave=0)
        message = (
            r"no CPU came free .* in 1 s: reading needs 1, Ray has 4, of which 0(\.\d)? free and \d held"
        )
        with pytest.raises(ValueError, match=message):
            PlannedStream(
                LatentReader(index), CONFIG, rank=0, ranks=1, start=Cursor(), steps=1, cpu_timeout_s=1
            )

    def test_a_plan_that_cannot_work_is_refused_at_the_start(self, index):
        with pytest.raises(ValueError, match=r"ranks must divide micro_batches \(4\): one of 1, 2, 4; got 3"):
            PlannedStream(LatentReader(index), CONFIG, rank=0, ranks=3, start=Cursor(), steps=1)
        with pytest.raises(ValueError, match=r"rank must be in 0\.\.1, got 2"):
            PlannedStream(LatentReader(index), CONFIG, rank=2, ranks=2, start=Cursor(), steps=1)
        with (
            pytest.raises(ValueError, match="nothing to train on"),
            PlannedStream(
                LatentReader(index.held_out()), CONFIG, rank=0, ranks=1, start=Cursor(), steps=1
            ) as stream,
        ):
            next(stream)
