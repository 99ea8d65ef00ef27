"""Test that the command of the curation bench runs and reports every measurement."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xactor.controls import CONTROL_COUNT
from xactor.media import write_video
from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
@pytest.mark.cluster
def test_report_has_stages_decoding_and_actors(ray_cluster, video_corpus, tmp_path):
    face = render_frame(held_out_identities()[1], np.zeros(CONTROL_COUNT, np.float32), 192)
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000 * 2).astype(np.float32)
    write_video(tmp_path / "videos" / "face.mp4", [face] * 50, samples=sound)
    output = tmp_path / "curate.json"
    shards, _ = video_corpus([10])
    options = [
        "--videos",
        str(tmp_path / "videos"),
        "--shards",
        shards,
        "--output",
        str(output),
        "--size-px",
        "96",
    ]
    command = [sys.executable, "jobs/bench.py", "curate", *options, "--pieces", "4", "--rounds", "1"]
    env = {**os.environ, "RAY_ADDRESS": ray_cluster}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    report = json.loads(output.read_text())
    assert [row["stage"] for row in report["stages"]] == [
        "probe",
        "scan",
        "track",
        "cut",
        "recognise",
        "write",
        "all",
    ]
    assert all(row["hours_per_core_hour"] > 0 for row in report["stages"])
    assert report["decoding"]["ratio"] > 0.5
    for work in ("tracking", "encoding"):
        assert report[work]["two"] > 0
    assert 0 <= report["encoding"]["waits"] < 1
    assert "encoding: two actors are" in run.stdout
