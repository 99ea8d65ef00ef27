"""Test that saved statistics of videos come back as they were, and that a planted file runs no code."""

import pickle

import numpy as np
import pytest
from planted import Planted

from xactor.metrics.fvd import VideoStatistics
from xactor_platform.evaluation.scoring import _read_statistics


def save(path, **statistics: VideoStatistics) -> None:
    np.savez(path, **{f"{n}.{key}": a for n, s in statistics.items() for key, a in s.arrays().items()})


def test_statistics_come_back_as_they_were(tmp_path):
    made = VideoStatistics("i3d of a test", stride_frames=4)
    made.add(np.random.default_rng(0).standard_normal((5, 400)))
    save(tmp_path / "a.npz", made=made, true=VideoStatistics("another"))
    read = _read_statistics(tmp_path / "a.npz")
    assert list(read) == ["made", "true"]
    assert (read["made"].weights, read["made"].stride_frames, read["made"].count) == ("i3d of a test", 4, 5)
    np.testing.assert_array_equal(read["made"].covariance, made.covariance)
    assert read["true"].count == 0
    np.savez(tmp_path / "none.npz")
    assert _read_statistics(tmp_path / "none.npz") == {}


@pytest.mark.parametrize("kind", ["pickle", "object array", "truncated", "empty", "other arrays"])
def test_a_planted_or_damaged_file_is_named_and_runs_no_code(tmp_path, kind):
    file = tmp_path / "a.npz"
    planted = Planted(tmp_path / "ran")
    if kind == "pickle":
        file.write_bytes(pickle.dumps(planted))
    elif kind == "object array":
        np.savez(file, **{"made.weights": np.array([planted], dtype=object)})
    elif kind == "truncated":
        save(file, made=VideoStatistics("x"))
        file.write_bytes(file.read_bytes()[:400])
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        np.savez(file, **{"made.weights": np.array("x")})
    with pytest.raises(
        ValueError, match=r"a\.npz: no statistics of a video .*delete the file to score again"
    ):
        _read_statistics(file)
    assert not (tmp_path / "ran").exists()
