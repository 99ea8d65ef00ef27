"""Test that files of a run's folder that are damaged are named in one line, and that damaged rows are left out."""

import json
from pathlib import Path

import pytest

from xactor_platform.training.latent_corpus import check_moments
from xactor_platform.training.run import folder as folder_module
from xactor_platform.training.run.checkpoints import Manifest
from xactor_platform.training.run.folder import CONFIG, METRICS, RunFolder, saved_config
from xactor_platform.training.run.lease import LEASE, lease
from xactor_platform.training.run.run_log import last_attempts, read_metrics
from xactor_platform.training.stage2_config import tiny
from xactor_platform.training.train_config import as_dict, refuse_changes


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(folder_module, "_READ_AGAIN_S", 0.0)
    (tmp_path / "run").mkdir()
    return RunFolder(str(tmp_path), "run", storage_timeout_s=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"config": {', "not JSON"),
        (b'{"config": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not the config of a run"),
        (b'{"facts": {}}', "not the config of a run"),
        (b'{"config": {"train": 3}}', "not the config of a run"),
    ],
    ids=["cut", "bytes", "nested", "list", "no config", "no section"],
)
def test_a_damaged_config_is_named(run, content, reason):
    Path(run.location.path, CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=rf"run/config\.json: {reason}") as raised:
        saved_config(run)
    assert "\n" not in str(raised.value)


def test_damaged_rows_of_the_metrics_are_left_out(run):
    rows = [{"step": n, "attempt": 1, "loss": 0.5} for n in range(1, 4)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[1] = lines[1].replace(b"attempt", b"att\xffmpt")
    damaged = [
        b"7",
        b"[]",
        b'{"step": "2"}',
        b'{"step": 2, "attempt": null, "loss": 1}',
        b"[" * 100_000,
        b"{",
    ]
    Path(run.location.path, METRICS).write_bytes(b"\n".join([*lines, *damaged]))
    assert read_metrics(run) == [rows[0], rows[2]]
    assert last_attempts(read_metrics(run), 9) == [rows[0], rows[2]]


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b'{"process": "x"}', b"7"])
def test_a_damaged_lease_is_taken_over(run, content, monkeypatch):
    monkeypatch.setattr("xactor_platform.training.run.lease.STALE_S", 0.5)
    Path(run.location.path, LEASE).write_bytes(content)
    with lease(run) as holder:
        assert json.loads(Path(run.location.path, LEASE).read_text())["holder"] == holder


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"step": 7}, "is for step 7"),
        ({"ranks": "2"}, "ranks must be a whole number >= 1, got 2"),
        ({"parameters": 0}, "parameters must be a whole number >= 1, got 0"),
        ({"score": "x"}, "score must be a number or null, got x"),
        ({"files": []}, "names no files"),
        ({"files": [{"name": "../x", "size": 1, "sha256": ""}]}, "files outside the checkpoint's folder"),
        ({"files": [{"name": "/etc/x", "size": 1, "sha256": ""}]}, "files outside the checkpoint's folder"),
        ({"files": [{"name": 3, "size": 1, "sha256": ""}]}, "expected str"),
        ({"files": 5}, "not iterable"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, error):
    files = [{"name": "state/a.pt", "size": 1, "sha256": ""}]
    facts = {"format": 1, "step": 3, "ranks": 2, "parameters": 5, "score": None, "config": {}, "packages": {}}
    assert Manifest.parse({**facts, "files": files}, 3).files[0].name == "state/a.pt"
    with pytest.raises((ValueError, TypeError), match=error):
        Manifest.parse({**facts, "files": files, **change}, 3)


def test_a_saved_config_that_cannot_be_read_is_named():
    saved = as_dict(tiny())
    for section, name in (("train", "steps"), ("data", "max_bad_fraction"), ("scale", "ranks")):
        damaged = {**saved, section: {**saved[section], name: []}}
        with pytest.raises(ValueError, match=r"runs/x: config\.json or manifest\.json: .*"):
            refuse_changes(damaged, tiny(), "runs/x")


@pytest.mark.parametrize(
    "moments",
    [None, {}, [], [[0.0, 0.0]], [[0.0], [1.0]], [[0.0, "x"], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]],
)
def test_moments_that_are_damaged_are_refused(moments):
    check_moments([[0.0, 1.5], [1.0, 2]], 2)
    with pytest.raises(
        ValueError, match=r"moments in the run's config\.json must be 2 means and 2 deviations > 0"
    ):
        check_moments(moments, 2)
