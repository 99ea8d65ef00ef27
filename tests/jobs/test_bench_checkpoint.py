"""Test that the bench of checkpoints writes its report, on a small state and without a bound on the speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_report_has_the_time_that_a_step_waits(tmp_path):
    out = tmp_path / "checkpoint.json"
    command = [
        sys.executable,
        "jobs/bench.py",
        "checkpoint",
        "--width",
        "256",
        "--layers",
        "3",
        "--rounds",
        "2",
    ]
    run = subprocess.run(
        [*command, "--output", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(out.read_text())
    # Three layers of 256 x 256 parameters, each with 16 bytes of state.
    assert report["state_bytes"] > 16 * 3 * 256 * 256
    assert 0 < report["blocked_s"] <= report["synchronous_s"]
    assert report["plain_s"] > 0
    assert report["command"].endswith("--rounds 2 --output " + str(out))
    assert "GB: a step waits" in run.stdout
