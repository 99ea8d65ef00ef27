"""Test that `jobs/bench.py serve` measures a running service, for a few seconds."""

import io

import numpy as np
import pytest
from benches.serve import Load, first_fragments, held_up, memory_under_load, under_load
from client import FAST, wav
from PIL import Image


@pytest.fixture(scope="module")
def load(face) -> Load:
    return Load(
        image=face, audio=wav(1), seconds=1, fields={name: str(value) for name, value in FAST.items()}
    )


@pytest.mark.cluster
def test_a_load_is_measured(service, load):
    assert all(0 < seconds < 60 for seconds in first_fragments(service.url, load, requests=2))
    row = under_load(service.url, load, rate=2, seconds=2)
    assert row["requests"] == 4
    assert row["statuses"] == {200: 4}
    assert 0 < row["first_p50_s"] <= row["first_p95_s"]
    assert 0 <= row["fragments_on_time"] <= 1


def test_new_portraits_differ_and_look_alike(load):
    portraits = [np.asarray(Image.open(io.BytesIO(load.of_another(n).image))).astype(int) for n in range(64)]
    assert len({portrait.tobytes() for portrait in portraits}) == 64
    assert max(np.abs(portrait - portraits[0]).max() for portrait in portraits) <= 7


@pytest.mark.cluster
def test_excess_requests_are_refused_and_memory_is_watched(service, load):
    row = memory_under_load(service.url, load, rate=8, seconds=9, part_s=3)
    assert set(row["statuses"]) <= {200, 429, 503}
    assert sum(row["statuses"].values()) == 72
    assert row["early_mib"] > 100
    assert row["late_over_early"] == row["late_mib"] / row["early_mib"]


def test_throughput_past_its_peak_is_compared_with_the_peak():
    rates = [(10.0, {200: 4}), (20.0, {200: 8}), (15.0, {200: 6, 503: 9}), (18.0, {200: 7, 0: 1})]
    rows = [{"frames_per_s": rate, "statuses": statuses} for rate, statuses in rates]
    assert held_up(rows) == {
        "peak_frames_per_s": 20.0,
        "min_past_it_over_peak": 0.75,
        "other_statuses": [0],
    }
