"""Test that the bench of the motion engine reports all its figures, with the smallest model."""

import math
from typing import Any

import pytest
import torch
from benches import motion as bench_motion
from motion_models import small_model

from xactor.motion import MotionEngine, SamplingConfig

SIZE = "test"


@pytest.fixture(autouse=True)
def smallest(monkeypatch):
    """Add the smallest backbone, with the paper's context and chunk."""
    # Hidden width, layers, heads, key-value heads, width of the MLP.
    monkeypatch.setitem(bench_motion.SIZES, SIZE, (32, 1, 2, 1, 32))


def figures(row: dict[str, Any]) -> list[float]:
    """Return every number of a row and of its nested rows."""
    found = []
    for value in row.values():
        if isinstance(value, dict):
            found += figures(value)
        elif not isinstance(value, str):
            found.append(value)
    return found


def all_positive(row: dict[str, Any]) -> bool:
    return all(math.isfinite(value) and value > 0 for value in figures(row))


def test_cached_and_uncached_chunks_are_compared():
    row = bench_motion.compare_cache(SIZE, steps=2, rounds=1)
    assert set(row) == {
        "size", "parameters", "context_frames", "chunk_frames", "steps",
        "cached_s", "uncached_s", "uncached_over_cached",
    }  # fmt: skip
    assert all_positive(row)
    assert (row["size"], row["context_frames"], row["chunk_frames"], row["steps"]) == (SIZE, 512, 64, 2)
    assert row["uncached_over_cached"] == pytest.approx(row["uncached_s"] / row["cached_s"])


def test_the_uncached_chunk_equals_the_engines_chunk():
    model = small_model()
    chunk, window, h = model.config.chunk_frames, model.config.audio_window, model.config.history_frames
    sizes = (model.config.audio_layers, model.config.audio_dim)
    audio = torch.randn(h + chunk + window, *sizes, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(steps=4)
    engine = MotionEngine(model, max_streams=1)
    stream = engine.open(seed=0, config=config)
    stream.feed(audio)
    pieces = []
    while stream.made < h + chunk:
        assert engine.step()
        pieces.append(stream.take())
    made = model.standardise(torch.cat(pieces))
    uncached = bench_motion.uncached_chunk(model, made[None, :h], audio, config)
    torch.testing.assert_close(uncached[0], made[h:], atol=2e-4, rtol=0)


def test_every_way_of_batching_serves_all_requests():
    streams = 3
    row = bench_motion.compare_batching(SIZE, streams=streams, chunks=1, steps=1, rounds=1, max_batch=2)
    ways = ("engine", "one_after_another", "whole_batches")
    assert set(row) == {
        "size", "streams", "frames_a_stream", "steps", "max_batch", *ways, "throughput_over_the_better",
    }  # fmt: skip
    assert all_positive(row)
    for way in ways:
        assert set(row[way]) == {"seconds", "frames_per_s", "first_chunk_p50_s", "first_chunk_p95_s"}
        assert row[way]["frames_per_s"] * row[way]["seconds"] == pytest.approx(
            streams * row["frames_a_stream"]
        )
        assert row[way]["first_chunk_p50_s"] <= row[way]["first_chunk_p95_s"] < row[way]["seconds"]


@pytest.mark.parametrize("groups", [1, 2])
def test_rate_counts_whole_chunks_and_the_first_group_comes_early(groups):
    row = bench_motion.measure_rate(SIZE, config=SamplingConfig(steps=8, groups=groups), rounds=3)
    gpu_keys = {"of_the_bandwidth_floor"} if torch.cuda.is_available() else set()
    assert set(row) == gpu_keys | {
        "size", "parameters", "steps", "groups", "frames_per_s", "real_time_factor", "first_frames_s",
    }  # fmt: skip
    assert all_positive(row)
    assert (row["steps"], row["groups"]) == (8, groups)
    assert row["frames_per_s"] * row["real_time_factor"] == pytest.approx(25)
    # A single group is the whole chunk of 64 frames. The first of two groups comes after two thirds of the steps.
    share = row["first_frames_s"] / (64 / row["frames_per_s"])
    if groups == 1:
        assert share > 0.95
    else:
        assert share < 0.95


def test_the_last_minute_is_compared_with_the_second():
    row = bench_motion.measure_length(SIZE, minutes=2, steps=1)
    assert set(row) == {
        "size", "minutes", "steps", "chunk_s_early", "chunk_s_late", "late_over_early_s",
        "memory_mb_early", "memory_mb_late", "late_over_early_mb",
    }  # fmt: skip
    assert all_positive(row)
    assert row["late_over_early_s"] == row["chunk_s_late"] / row["chunk_s_early"]
    # Of two minutes, the second is also the last.
    assert row["late_over_early_mb"] == 1
    with pytest.raises(ValueError, match="minutes must be >= 2, got 1"):
        bench_motion.measure_length(SIZE, minutes=1, steps=1)
