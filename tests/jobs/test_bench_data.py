"""Test that the command of the data bench runs and reports every measurement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
@pytest.mark.cluster
def test_report_has_both_readers_and_the_plan(tmp_path):
    output = tmp_path / "data.json"
    options = "--size-gb 0.03 --audio-layers 1 --workers 1 --rounds 1 --epochs 2 --budget-frames 1024"
    command = [sys.executable, "jobs/bench.py", "data", *options.split(), "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    report = json.loads(output.read_text())
    (stream,) = report["streams"]
    # Float16: 512 numbers of motion, and 768 of one layer of audio features.
    assert stream["bytes_per_frame"] == 2 * (512 + 768)
    assert all(rate > 0 for rate in stream["frames_per_s"].values())
    assert report["plan_of_the_papers_corpus"]["padding"] < 0.05
    assert report["plan_of_the_papers_corpus"]["peak_mb"] < 1000
    assert "reading processes: 1;" in run.stdout
