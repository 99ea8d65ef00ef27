"""Test that checkpoints are written, verified, kept and dropped, also in a storage that fails for a while."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.run import checkpoints as checkpoints_module
from xactor_platform.training.run.checkpoints import MANIFEST, Checkpoints, Corrupt, Manifest
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.run_log import RunLog
from xactor_platform.training.run.saver import Saved, Saver
from xactor_platform.training.run.snapshot import HostSnapshot

RANKS = 2


class Engine:
    """Save through a checkpoint engine, as DeepSpeed's engine does."""

    def __init__(self, weight: torch.Tensor, rank: int = 0):
        self.weight, self.rank = weight, rank
        self.checkpoint_engine: object = "DeepSpeed's own"

    def save_checkpoint(self, folder: str, *, tag: str, client_state: dict, save_latest: bool) -> None:
        # This tensor occurs several times, and a snapshot must copy it once.
        state = {"module": {"weight": self.weight}, "alike": [self.weight, self.weight], **client_state}
        self.checkpoint_engine.save(state, f"{folder}/{tag}/part_{self.rank}.pt")  # pyright: ignore


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(str(tmp_path), "run", storage_timeout_s=0)


def saver_of(
    checkpoints: Checkpoints, rank: int, *, token: str = "t", timeout_s: float = 20, **calls
) -> Saver:
    calls = {"before_commit": lambda: None, "committed": lambda saved: None} | calls
    return Saver(
        checkpoints,
        rank=rank,
        ranks=RANKS,
        token=token,
        parameters=8,
        config={"train": {"steps": 9}},
        timeout_s=timeout_s,
        **calls,
    )


def save(checkpoints: Checkpoints, step: int, score: float | None = None) -> None:
    """Save a checkpoint from both ranks."""
    savers = [saver_of(checkpoints, rank) for rank in range(RANKS)]
    for rank, saver in enumerate(savers):
        saver.save(Engine(torch.full((8,), float(step)), rank), step, {"step": step}, score)
    for saver in savers:
        with saver:
            saver.wait()


def steps(checkpoints: Checkpoints) -> list[int]:
    return [manifest.step for manifest in checkpoints.complete()]


def loaded(checkpoints: Checkpoints, manifest: Manifest, target: Path) -> dict:
    checkpoints.fetch(manifest, target)
    assert sorted(p.name for p in target.rglob("*.pt")) == ["part_0.pt", "part_1.pt"]
    return torch.load(target / "state" / "part_1.pt", weights_only=False)


def test_a_saved_checkpoint_is_loaded(run, tmp_path):
    checkpoints = Checkpoints(run)
    save(checkpoints, 3, score=0.5)
    (manifest,) = checkpoints.complete()
    assert (manifest.step, manifest.ranks, manifest.parameters, manifest.score) == (3, RANKS, 8, 0.5)
    assert manifest.config == {"train": {"steps": 9}}
    assert "torch" in manifest.packages
    state = loaded(checkpoints, manifest, tmp_path / "node")
    assert torch.equal(state["module"]["weight"], torch.full((8,), 3.0))
    assert state["step"] == 3


def test_a_snapshot_is_a_copy_and_its_memory_is_reused():
    weight = torch.arange(4.0)
    engine, snapshot = Engine(weight), HostSnapshot()
    first = snapshot.take(engine, {"step": 1, "stage": {"averages": [weight * 2]}})
    weight += 10
    state = first["state/part_0.pt"]
    assert state["module"]["weight"].tolist() == [0, 1, 2, 3]
    assert state["stage"]["averages"][0].tolist() == [0, 2, 4, 6]
    assert state["alike"][0] is state["alike"][1]
    where = state["module"]["weight"].data_ptr()
    again = snapshot.take(engine, {"step": 2, "stage": {"averages": [weight * 2]}})["state/part_0.pt"]
    assert again["module"]["weight"].data_ptr() == where
    assert again["module"]["weight"].tolist() == [10, 11, 12, 13]
    assert engine.checkpoint_engine == "DeepSpeed's own"


def test_a_checkpoint_needs_the_files_of_all_ranks(run):
    checkpoints = Checkpoints(run)
    save(checkpoints, 1)
    alone = saver_of(checkpoints, 0, timeout_s=0.1)
    alone.save(Engine(torch.zeros(8)), 2, {}, None)
    with pytest.raises(
        TimeoutError, match=r"checkpoint-00000002: ranks \[1\] did not write their files in 0\.1 s"
    ):
        alone.wait()
    # Rank 1 has a note with its files from an earlier start, which does not count.
    late = saver_of(checkpoints, 1, token="earlier")
    late.save(Engine(torch.zeros(8), 1), 2, {}, None)
    late.wait()
    alone.save(Engine(torch.zeros(8)), 2, {}, None)
    with pytest.raises(TimeoutError, match=r"ranks \[1\]"):
        alone.wait()
    assert steps(checkpoints) == [1]
    assert checkpoints.sweep(after=1) == [2]
    assert not (Path(run.location.path) / "checkpoint-00000002").exists()


def test_an_error_before_the_commit_prevents_the_checkpoint(run):
    def taken_over() -> None:
        raise TrainingStopped("another one goes on")

    checkpoints = Checkpoints(run)
    savers = [saver_of(checkpoints, 0, before_commit=taken_over), saver_of(checkpoints, 1)]
    for rank, saver in enumerate(savers):
        saver.save(Engine(torch.zeros(8), rank), 1, {}, None)
    savers[1].wait()
    with pytest.raises(TrainingStopped, match="another one goes on"):
        savers[0].wait()
    assert steps(checkpoints) == []


def test_the_newest_and_the_best_checkpoints_are_kept(run):
    checkpoints = Checkpoints(run, keep=2, keep_best=1)
    for step, score in ((1, 0.9), (2, 0.1), (3, None), (4, 0.5), (5, 0.4)):
        save(checkpoints, step, score)
    assert steps(checkpoints) == [5, 4, 2]
    kept = sorted(p.name for p in Path(run.location.path).glob("checkpoint-*"))
    assert kept == [f"checkpoint-{step:08d}" for step in (2, 4, 5)]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named(run, tmp_path, harm):
    checkpoints = Checkpoints(run)
    save(checkpoints, 1)
    (manifest,) = checkpoints.complete()
    part = Path(run.location.path) / manifest.folder / "state" / "part_1.pt"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "flip":
        part.write_bytes(data)
    elif harm == "cut":
        part.write_bytes(data[:99])
    else:
        part.unlink()
    says = {"flip": "another SHA-256", "cut": "has 99 bytes, its manifest says", "gone": "is missing"}[harm]
    with pytest.raises(Corrupt, match=rf"state/part_1\.pt {says}|state/part_1\.pt has {says}"):
        checkpoints.fetch(manifest, tmp_path / "node")


def test_files_of_an_earlier_start_are_not_part_of_a_checkpoint(run, tmp_path):
    checkpoints = Checkpoints(run)
    save(checkpoints, 1)
    (manifest,) = checkpoints.complete()
    (Path(run.location.path) / manifest.folder / "state" / "part_2.pt").write_bytes(b"of four ranks")
    loaded(checkpoints, manifest, tmp_path / "node")


def test_a_truncated_manifest_is_reported_and_one_of_a_newer_version_is_refused(run, capsys):
    checkpoints = Checkpoints(run)
    save(checkpoints, 1)
    save(checkpoints, 2)
    save(checkpoints, 3)
    path = Path(run.location.path) / "checkpoint-00000003" / MANIFEST
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    assert steps(checkpoints) == []
    assert "CORRUPT checkpoint" in capsys.readouterr().out
    assert checkpoints.unreadable() == [3]
    path.write_text(json.dumps(whole | {"format": 7, "colour": "blue"}))
    with pytest.raises(
        ValueError,
        match=rf"checkpoint-00000003 has format 7, this version reads up to {checkpoints_module.FORMAT}",
    ):
        checkpoints.complete()
    path.write_text(json.dumps(whole))
    assert checkpoints.unreadable() == []


def test_a_full_disk_loses_no_checkpoint_and_no_row(run, monkeypatch):
    """Fill the disk for two writes, and later for good."""
    checkpoints, disk = Checkpoints(run), SimpleNamespace(failures_left=0)
    save(checkpoints, 1)
    log = RunLog(run, "metrics.jsonl")
    log.write({"step": 1})
    torch_save = torch.save

    def failing_save(*args):
        if disk.failures_left:
            disk.failures_left -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return torch_save(*args)

    monkeypatch.setattr(torch, "save", failing_save)
    retrying = Checkpoints(RunFolder(run.storage.path, "run", storage_timeout_s=5), keep=9)
    disk.failures_left = 2
    save(retrying, 2)
    disk.failures_left = 10**9
    with pytest.raises(StorageUnavailable, match="No space left on device"):
        save(checkpoints, 3)
    assert steps(checkpoints) == [2, 1]

    class FullFile:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file, log._file = log._file, FullFile()  # pyright: ignore
    log.write({"step": 2})
    with pytest.raises(StorageUnavailable, match=r"metrics\.jsonl"):
        log.flush()
    log._file = file
    log.write({"step": 3})
    log.close()
    assert [row["step"] for row in run.read_lines("metrics.jsonl")] == [1, 2, 3]


def test_a_checkpoint_is_written_in_the_background_and_its_end_is_reported(run):
    reported: list[Saved] = []
    checkpoints = Checkpoints(run)
    first, second = (saver_of(checkpoints, rank, committed=reported.append) for rank in range(RANKS))
    first.save(Engine(torch.zeros(8)), 1, {}, None)
    # The checkpoint is pending, so `check` has no error to raise.
    first.check()
    assert not reported
    second.save(Engine(torch.zeros(8), 1), 1, {}, None)
    first.wait()
    (saved,) = reported
    assert saved.step == 1
    assert 0 < saved.blocked_s <= saved.seconds
