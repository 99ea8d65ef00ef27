"""Test that a training continues when a node is lost, and that a cluster without worker nodes grows for a training."""

import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
from benches.crashes import command, history, python_env
from small_run import config_of, options_of

from xactor_platform.cluster.local import WorkerGroup, local_cluster
from xactor_platform.data.plan import PlanConfig
from xactor_platform.training import elastic
from xactor_platform.training.elastic import SharedSteps
from xactor_platform.training.run.folder import METRICS, SAMPLES, RunFolder
from xactor_platform.training.run.run_log import last_attempts

HERE, ROOT = Path(__file__).resolve().parents[1], Path(__file__).resolve().parents[3]


# The test starts a cluster, which takes minutes on a busy machine.
@pytest.mark.timeout(1800)
@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("node", "steps", "then"),
    [
        # Three CPUs are left, and one of them reads data.
        ("stays-away", 40, [2]),
        ("comes-back", 3000, [2, 4]),
    ],
)
def test_a_run_continues_with_fewer_ranks_when_a_node_is_lost(shards, tmp_path, node, steps, then):
    script = [sys.executable, str(HERE / "lost_node.py"), shards, str(tmp_path), str(steps), node]
    run = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "lost a node" in run.stdout
    assert f"done: step {steps}" in run.stdout
    folder = RunFolder(str(tmp_path), "run")
    by_attempt: dict[int, set[int]] = {}
    for row in folder.read_lines(SAMPLES):
        by_attempt.setdefault(row["attempt"], set()).add(row["rank"])
    sizes = [len(ranks) for _, ranks in sorted(by_attempt.items())]
    assert [size for size, _ in groupby(sizes)] == [4, *then]
    rows = last_attempts(folder.read_lines(METRICS), steps)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    # `history` checks that no sample is trained on twice in an epoch.
    history(folder, steps)


# The test starts a cluster, which takes minutes on a busy machine.
@pytest.mark.timeout(1800)
@pytest.mark.soak
@pytest.mark.cluster
def test_a_cluster_grows_from_no_node_for_a_training_and_shrinks_after_it(shards, tmp_path):
    scale = {"cpus_per_rank": 1, "start_timeout_s": 200}
    options = options_of(config_of(shards, tmp_path, "grown", scale=scale, steps=3))
    group = WorkerGroup(cpus=3, max_nodes=1)
    with local_cluster(cpus=0, groups={"train": group}, idle_s=3, log=tmp_path / "ray.log") as cluster:
        assert not cluster.worker_nodes()
        env = python_env(cluster.env, cluster.address)
        run = subprocess.run(
            command("train_stage2", options),
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "done: step 3" in run.stdout
        # The training withdraws its request for nodes at its end. Ray Data's requests last for three minutes.
        deadline = time.monotonic() + 300
        while cluster.worker_nodes() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not cluster.worker_nodes()


@pytest.mark.parametrize(
    ("reserved", "cpus", "ranks"),
    [
        ([4, 4], 9, 8),
        # One CPU must be left for reading data, and 7 ranks cannot share a step of 16 micro-batches.
        ([4, 4], 8, 4),
        ([4, 3], 8, 4),
        ([3], 4, 2),
        ([1], 1, 0),
        # The scaling config requests at most 8 ranks.
        ([20], 40, 8),
    ],
)
def test_ranks_are_rounded_down_to_a_number_that_can_share_a_step(monkeypatch, reserved, cpus, ranks):
    monkeypatch.setattr(elastic, "ray", SimpleNamespace(cluster_resources=lambda: {"CPU": cpus}))
    scaling = ray.train.ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1})
    policy = SharedSteps(scaling, PlanConfig(micro_batches=16), data_cpus=1)
    nodes = {f"node-{n}": {"CPU": float(cpus)} for n, cpus in enumerate(reserved)}
    assert policy._count_possible_workers(nodes) == ranks
