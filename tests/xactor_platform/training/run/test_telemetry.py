"""Test traces on demand, and TensorBoard's files."""

import gzip
import json
import struct
from pathlib import Path

import pytest
import torch

from xactor_platform.training.run import trace
from xactor_platform.training.run.board import Board
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.run.trace import TraceOnDemand


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(str(tmp_path), "run")


@pytest.fixture
def tracer(folder, monkeypatch) -> TraceOnDemand:
    monkeypatch.setattr(trace, "LOOK_S", 0.0)
    return TraceOnDemand(folder)


def train_steps(tracer: TraceOnDemand, first: int, last: int) -> None:
    for step in range(first, last + 1):
        torch.ones(8, 8) @ torch.ones(8, 8)
        tracer.step(step)


def operations(path: Path) -> list[str]:
    return [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]


def test_a_file_asks_for_a_trace_of_the_next_steps(folder, tracer, tmp_path, capsys):
    ask, traces = tmp_path / "run" / "profile", tmp_path / "run" / "traces"
    train_steps(tracer, 1, 3)
    assert not traces.exists()
    ask.write_text("2\n")
    train_steps(tracer, 4, 10)
    assert not ask.exists()
    assert [path.name for path in traces.iterdir()] == ["step-00000005.json.gz"]
    assert operations(traces / "step-00000005.json.gz").count("aten::mm") == 2
    assert "trace written" in capsys.readouterr().out
    ask.touch()
    train_steps(tracer, 11, 20)
    assert operations(traces / "step-00000012.json.gz").count("aten::mm") == 3


def test_a_run_that_ends_writes_the_steps_of_an_unfinished_trace(tracer, tmp_path):
    (tmp_path / "run" / "profile").write_text("50")
    train_steps(tracer, 1, 3)
    tracer.close()
    assert operations(tmp_path / "run" / "traces" / "step-00000002.json.gz").count("aten::mm") == 2


@pytest.mark.parametrize("asked", ["0", "many", "51", "-1"])
def test_an_invalid_request_is_reported_once_and_harms_nothing(asked, tracer, tmp_path, capsys):
    (tmp_path / "run" / "profile").write_text(asked)
    train_steps(tracer, 1, 4)
    out = capsys.readouterr().out
    assert out.count("must be empty or a number of steps in 1..50") == 1
    assert asked in out
    assert not (tmp_path / "run" / "traces").exists()


def test_requests_for_a_trace_are_read_only_every_few_seconds(folder, tmp_path, monkeypatch):
    tracer = TraceOnDemand(folder)
    looks = []
    monkeypatch.setattr(folder, "read_text", lambda name, **_: looks.append(name))
    train_steps(tracer, 1, 50)
    assert len(looks) <= 2


def test_a_storage_that_fails_does_not_end_the_training(folder, tracer, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("the network is gone")

    (tmp_path / "run" / "profile").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_bytes", fail)
        train_steps(tracer, 1, 2)
        patch.setattr(folder, "read_text", fail)
        train_steps(tracer, 3, 3)
    assert capsys.readouterr().out.count("no trace: the network is gone") == 2
    (tmp_path / "run" / "profile").write_text("1")
    train_steps(tracer, 4, 6)
    assert (tmp_path / "run" / "traces" / "step-00000005.json.gz").exists()


def scalars(board: Path) -> dict[tuple[str, int], float]:
    """Read TensorBoard's records, each of a length, its CRC, an event and its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in board.iterdir():
        data, position = path.read_bytes(), 0
        while position < len(data):
            (size,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + size])
            position += 16 + size
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_gets_every_number_of_a_row(folder, tmp_path):
    board = Board(folder, first_step=0)
    board.step({"step": 1, "loss": 0.5, "mfu": None, "phase": "vae"})
    board.step({"step": 2, "loss": 0.25, "held_out_loss": 0.75})
    board.close()
    assert scalars(tmp_path / "run" / "tensorboard") == {
        ("train/loss", 1): 0.5,
        ("train/loss", 2): 0.25,
        ("train/held_out_loss", 2): 0.75,
    }
