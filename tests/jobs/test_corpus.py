"""Test that submitted jobs read raw videos from a bucket and write training shards into a bucket."""

import json
import time
from pathlib import Path

import pytest
import requests
import torch
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import fs
from talkers import Talker

from xactor.media import write_video
from xactor.render import MotionEncoder
from xactor_platform.cluster.local import LocalCluster
from xactor_platform.data.index_file import load_index

ROOT = Path(__file__).resolve().parents[2]
# Ray's processes report every 10 s.
METRICS_S = 120.0


def upload(file: Path, uri: str) -> None:
    store, path = fs.FileSystem.from_uri(uri)
    store.create_dir(path, recursive=True)
    with store.open_output_stream(f"{path}/{file.name}") as target:
        target.write(file.read_bytes())


def metric_values(cluster: LocalCluster, family: str, wanted: dict[str, float]) -> dict[str, float]:
    """Wait until a metric family's values by the label `status` are as wanted, at most METRICS_S. Return the values."""
    seen: dict[str, float] = {}
    deadline = time.monotonic() + METRICS_S
    while seen != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
        for found in metric_families(cluster):
            if found.name == f"ray_{family}":
                seen = {sample.labels.get("status", ""): sample.value for sample in found.samples}
    return seen


def metric_families(cluster: LocalCluster) -> list[Metric]:
    """Return the current metrics of the cluster's agents, or none if an agent is too busy to answer."""
    try:
        nodes = requests.get(f"{cluster.dashboard}/api/prometheus/sd", timeout=10).json()
        agents = [agent for node in nodes for agent in node["targets"]]
        texts = [requests.get(f"http://{agent}/metrics", timeout=10).text for agent in agents]
    except requests.RequestException:
        return []
    return [family for text in texts for family in text_string_to_metric_families(text)]


@pytest.mark.soak
@pytest.mark.cluster
def test_submitted_jobs_make_shards_from_a_bucket_into_a_bucket(bare_cluster, bucket, tmp_path):
    talker = Talker(0, seed=2)
    write_video(tmp_path / "good.mp4", talker.frames, samples=talker.samples)
    (tmp_path / "broken.mp4").write_bytes(bytes(1000))
    for name in ("good.mp4", "broken.mp4"):
        upload(tmp_path / name, bucket.format("raw"))
    raw, videos, latents = (bucket.format(name) for name in ("raw", "videos", "latents/shards"))
    options = ["--size-px", "96", "--gates.min-crop-px", "96", "--max-failed", "0.5"]
    options += ["--identity", "none"]
    for stage in ("probe", "scan", "track", "cut", "sync", "recognise", "write"):
        options += [f"--pools.{stage}.max", "1", f"--pools.{stage}.cpus", "0.4"]
    command = ["python", "jobs/curate.py", "--videos", raw, "--output", videos, "--syncnet", "none", *options]
    # The job ends with 3, because one video is broken. `ray job submit` ends with 1 for every failed job.
    assert bare_cluster.submit(command, working_dir=ROOT) == 1
    index = load_index(videos)
    assert index.samples == 1
    store, path = fs.FileSystem.from_uri(videos)
    with store.open_input_file(f"{path}/bill.json") as file:
        bill = json.loads(file.read())
    assert (bill["videos"], bill["fates"]) == (2, {"kept": 1, "unreadable": 1})
    wanted = {"kept": 1, "failed": 1}
    assert metric_values(bare_cluster, "xactor_curate_clips", wanted) == wanted

    torch.manual_seed(0)
    encoder = MotionEncoder(image_size=32, channels=(8, 8, 16), latent_dim=32)
    encoder.save_pretrained(tmp_path / "model" / "motion_encoder")
    command = ["python", "jobs/precompute.py", "--videos", videos, "--model", str(tmp_path / "model")]
    assert bare_cluster.submit([*command, "--output", latents], working_dir=ROOT) == 0
    made = load_index(latents)
    assert made.shard_names == index.shard_names
    assert (list(made.key), list(made.frames)) == (list(index.key), list(index.frames))
    wanted = {"": float(made.frames.sum())}
    assert metric_values(bare_cluster, "xactor_precompute_frames", wanted) == wanted
