"""Test that shards and checkpoints work in an S3 store behind a network that fails."""

from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from faulty_proxy import FaultyProxy
from moto.server import ThreadedMotoServer
from pyarrow import fs
from small_run import config_of

from xactor_platform.data.index_file import load_index
from xactor_platform.storage.location import Location, child_uri
from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.launch import train
from xactor_platform.training.run.checkpoints import Checkpoints, Manifest
from xactor_platform.training.run.folder import RunFolder

RATE = 0.15


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope="module")
def proxy(moto):
    with FaultyProxy(moto, rate=0.0).running() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def bucket(proxy) -> str:
    """Return a bucket's URI with the options that pyarrow needs to reach it."""
    endpoint = quote(f"127.0.0.1:{proxy.port}", safe="")
    options = f"scheme=http&region=us-east-1&allow_bucket_creation=true&endpoint_override={endpoint}"
    uri = f"s3://key:secret@bucket?{options}"
    Location.parse(uri).filesystem.create_dir("bucket")
    return uri


@pytest.fixture
def faulty(proxy):
    """Make many requests fail during the test."""
    proxy.faults.clear()
    proxy.rate = RATE
    yield proxy
    proxy.rate = 0.0


@pytest.fixture(scope="module")
def in_bucket(bucket, shards) -> str:
    """Copy the corpus into the bucket, and return its URI."""
    uri = child_uri(bucket, "shards")
    place = Location.parse(uri)
    fs.copy_files(shards, place.path, destination_filesystem=place.filesystem)
    return uri


def manifest_of(checkpoints: Checkpoints, step: int) -> Manifest:
    return Manifest(
        format=1,
        step=step,
        ranks=1,
        parameters=9,
        score=None,
        config={},
        packages={},
        files=checkpoints.wait_for_ranks(step, ranks=1, token="t", timeout_s=30),
    )


@pytest.mark.slow
def test_checkpoints_and_an_index_survive_a_bad_network(bucket, in_bucket, shards, faulty, tmp_path):
    index, local = load_index(in_bucket), load_index(shards)
    assert index.key.tolist() == local.key.tolist()
    assert index.read(3, "json") == local.read(3, "json")
    checkpoints = Checkpoints(RunFolder(child_uri(bucket, "runs"), "parts"), keep=2)
    weight = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    for step in range(1, 5):
        checkpoints.write_rank(step, 0, token="t", files={"state/part.pt": {"weight": weight * step}})
        checkpoints.commit(manifest_of(checkpoints, step))
    complete = checkpoints.complete()
    assert [manifest.step for manifest in complete] == [4, 3]
    checkpoints.fetch(complete[0], tmp_path / "node")
    loaded = torch.load(tmp_path / "node" / "state" / "part.pt")
    assert torch.equal(loaded["weight"], weight * 4)
    checkpoints.sweep(after=0)
    assert checkpoints.complete() == []
    assert sum(faulty.faults.values()) >= 5, faulty.faults


@pytest.mark.parametrize("request_number", range(4))
def test_a_listing_whose_response_was_cut_is_complete(in_bucket, shards, proxy, request_number):
    expected = Location.parse(shards).sizes()
    # A response arrives in pieces of varying sizes, so some of the ten cuts fall within its headers.
    for _ in range(10):
        proxy.cut_at = request_number
        assert Location.parse(in_bucket).sizes() == expected
    proxy.cut_at = None


@pytest.mark.slow
def test_an_unreachable_store_is_named(bucket, proxy):
    folder = RunFolder(child_uri(bucket, "runs"), "gone", storage_timeout_s=0)
    proxy.gone = True
    with pytest.raises(
        StorageUnavailable, match=r"bucket/runs/gone/config\.json: the storage failed for 0 s"
    ):
        folder.write_text("config.json", "{}")
    proxy.gone = False
    folder.write_text("config.json", "{}")
    assert folder.read_text("config.json") == "{}"


@pytest.mark.soak
@pytest.mark.cluster
def test_a_run_in_a_bucket_equals_a_local_one(ray_cluster, bucket, in_bucket, shards, faulty, tmp_path):
    storage = child_uri(bucket, "runs")
    settings = {"scale": {"ranks": 1}, "steps": 9, "evaluate_every": 0, "checkpoint_every": 3}
    result = train(config_of(in_bucket, storage, "run", **settings))
    assert sum(faulty.faults.values()) >= 10, faulty.faults
    faulty.rate = 0.0
    train(config_of(shards, tmp_path, "run", **settings))
    run, local = RunFolder(storage, "run"), RunFolder(str(tmp_path), "run")
    for name, columns in (
        ("metrics.jsonl", ("step", "loss", "grad_norm")),
        ("samples.jsonl", ("step", "rank", "samples")),
    ):
        got, expected = ([[r[c] for c in columns] for r in f.read_lines(name)] for f in (run, local))
        assert got == expected
    export = Location.parse(result.export)
    fs.copy_files(export.path, str(tmp_path / "export"), source_filesystem=export.filesystem)
    weights = Path("motion/model.safetensors")
    local_weights = tmp_path / "run" / "export" / weights
    assert (tmp_path / "export" / weights).read_bytes() == local_weights.read_bytes()
    assert [m.step for m in Checkpoints(run).complete()] == [9, 6, 3]
