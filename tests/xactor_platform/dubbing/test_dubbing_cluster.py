"""Test bulk dubbing on a cluster whose nodes are processes of this machine. Ray's autoscaler starts and stops them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from xactor.media import read_frames
from xactor_platform.cluster.local import WorkerGroup, local_cluster

ROOT = Path(__file__).parents[3]
# A node has room for one actor of a model, or for all actors that read and write files.
POOLS = ["--pools.groups"]
for stage, cpus, max_actors in (
    ("decode", 0.2, 2),
    ("motion", 0.6, 1),
    ("render", 0.6, 4),
    ("encode", 0.2, 2),
):
    POOLS += [f"--pools.{stage}.cpus", str(cpus), f"--pools.{stage}.max", str(max_actors)]


def kill_a_node(group: str, other_raylets: set[int]) -> bool:
    """Kill a worker node of a group with all its processes, as if its machine were gone. Return whether one was found.

    Args:
        group: The node group.
        other_raylets: Process ids of the raylets that are not this test's, which are left alone.
    """
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["name"] == "raylet" and f'"ray.io/node-group":"{group}"' in line.replace(" ", ""):
            if process.pid in other_raylets:
                continue
            family = [process, *process.children(recursive=True)]
            for one in family:
                try:
                    one.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            return True
    return False


# Clusters start in this test, which takes minutes on a busy machine.
@pytest.mark.timeout(1800)
@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("rows", "nodes", "kills"),
    [
        pytest.param(6, 2, 1, id="6 rows"),
        pytest.param(200, 3, 0, id="200 rows"),
        pytest.param(200, 3, 2, id="200 rows, 2 nodes killed"),
    ],
)
def test_render_nodes_start_with_the_work_and_stop_after_it(model, media, tmp_path, rows, nodes, kills):
    items = [
        {
            "id": f"r{n:03d}",
            "image": "face.png",
            "audio": f"{1 + n % 2}.wav",
            # Few rows must take long enough to be interrupted.
            "render_steps": 10 if rows < 10 else 2,
            "render_cfg": 2.0 if rows < 10 else 1.0,
        }
        for n in range(rows)
    ]
    manifest = media / f"{rows}-{kills}.jsonl"
    manifest.write_text(
        "".join(json.dumps(item | {"motion_steps": 2, "seed": n}) + "\n" for n, item in enumerate(items))
    )
    groups = {"motion": WorkerGroup(cpus=1, max_nodes=1), "render": WorkerGroup(cpus=1, max_nodes=nodes)}
    seen: list[Counter[str]] = []
    other_raylets = {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"}
    with local_cluster(cpus=1, groups=groups, idle_s=3, log=tmp_path / "cluster.log") as cluster:
        assert not cluster.worker_nodes()
        command = [
            sys.executable,
            str(ROOT / "jobs" / "dub_bulk.py"),
            "--manifest",
            str(manifest),
            "--model",
            model,
        ]
        command += ["--output", str(tmp_path / "out"), *POOLS]
        env = cluster.env | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (tmp_path / "job.log").open("w") as log:
            job = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            try:
                while job.poll() is None:
                    seen.append(cluster.worker_nodes())
                    is_rendering = any((tmp_path / "out").glob(".parts/*/*.mp4"))
                    may_kill = kills > 0 and is_rendering and seen[-1]["render"] == nodes
                    if may_kill and kill_a_node("render", other_raylets):
                        kills -= 1
                    time.sleep(0.3)
            finally:
                job.kill()
        deadline = time.monotonic() + 60
        while cluster.worker_nodes() and time.monotonic() < deadline:
            time.sleep(0.3)
        assert not cluster.worker_nodes(), "idle nodes were not stopped"
    assert job.returncode == 0, (tmp_path / "job.log").read_text()[-3000:]
    assert kills == 0, "no node was killed"
    assert max(count["render"] for count in seen) == nodes
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(r["id"], r["status"]) for r in results] == [(item["id"], "ok") for item in items]
    for number, item in enumerate(items):
        assert len(list(read_frames(tmp_path / "out" / f"{item['id']}.mp4"))) == 25 * (1 + number % 2)
    assert len(list((tmp_path / "out").glob("*.mp4"))) == rows
