"""Test ray_cluster.yaml with Ray's launcher and autoscaler, and prometheus.yml."""

import subprocess
import sys

import manifests
import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.util import prepare_config, validate_config

from xactor_platform.cluster.local import local_cluster
from xactor_platform.dubbing.decode import Decode
from xactor_platform.dubbing.encode import Encode
from xactor_platform.dubbing.look import Look
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render

GPU = {"GPU": 1.0, "CPU": 1.0}


def groups() -> dict[str, dict]:
    return manifests.launcher_config()["available_node_types"]


def test_rays_launcher_accepts_the_config():
    validate_config(prepare_config(manifests.launcher_config()))


def test_resources_match_the_instance_types():
    for name, group in groups().items():
        cpus, _, gpus = manifests.INSTANCES[group["node_config"]["InstanceType"]]
        promised = group["resources"]
        if name == "head":
            assert promised == {"CPU": 0}
        else:
            assert promised == {"CPU": cpus, "GPU": gpus, "accelerator_type:A100": 1}, name


def test_only_render_is_on_spot():
    spot = {name for name, group in groups().items() if "InstanceMarketOptions" in group["node_config"]}
    assert spot == {"render"}
    assert all(group.get("min_workers", 0) == 0 for group in groups().values()), (
        "an idle cluster is its head alone"
    )


@pytest.mark.parametrize("group", ["train", "motion", "render"])
def test_autoscaler_starts_the_selected_group(group):
    config = prepare_config(manifests.launcher_config())
    assert manifests.launched(config, [(GPU, {"ray.io/node-group": group})]) == {group: 1}


def test_no_stage_of_dubbing_starts_a_training_node():
    config = prepare_config(manifests.launcher_config())
    demands = [({"CPU": 0.5}, {"ray.io/node-group": kind.node_group}) for kind in (Look, Decode, Encode)]
    demands += [(GPU, {"ray.io/node-group": kind.node_group}) for kind in (Perform, Render)]
    assert manifests.launched(config, demands) == {"motion": 1, "render": 1}


def test_training_gets_train_nodes_without_a_label():
    config = prepare_config(manifests.launcher_config())
    ranks = [({"GPU": 1.0, "CPU": 8.0}, {})] * 16
    assert manifests.launched(config, ranks) == {"train": 2}


def test_every_process_has_the_token():
    config = manifests.launcher_config()
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_file_holds_no_key_and_a_pinned_image():
    text = (manifests.ROOT / "ray_cluster.yaml").read_text()
    assert "aws_credentials" not in text
    assert not any(word in text for word in ("AKIA", "secret_access_key", ":latest"))
    assert all("IamInstanceProfile" in group["node_config"] for group in groups().values())


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Return Ray's provider for AWS, with a fake AWS behind it."""
    moto = pytest.importorskip("moto", reason="moto and boto3 are not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fake")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
    # The launcher writes its key pair into the home folder.
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        yield AWSNodeProvider


@pytest.mark.slow
def test_instance_types_match_aws(aws):
    config = manifests.launcher_config()
    for group in config["available_node_types"].values():
        group["resources"] = {}
    found = aws.fillout_available_node_types_resources(prepare_config(config))["available_node_types"]
    for group in found.values():
        cpus, gib, gpus = manifests.INSTANCES[group["node_config"]["InstanceType"]]
        assert (group["resources"]["CPU"], group["resources"].get("GPU", 0)) == (cpus, gpus)
        assert group["resources"].get("memory", 0) <= gib << 30


def test_launcher_bootstraps_the_config(aws):
    """Run Ray's whole bootstrap. It adds subnets, security groups and a key pair, and keeps our profiles and images."""
    config = prepare_config(manifests.launcher_config())
    for name, group in aws.bootstrap_config(config)["available_node_types"].items():
        node = group["node_config"]
        assert {"SubnetIds", "SecurityGroupIds", "KeyName"} <= node.keys()
        assert node["IamInstanceProfile"] == {"Name": "xactor-head" if name == "head" else "xactor-worker"}
        assert node["ImageId"] == config["available_node_types"][name]["node_config"]["ImageId"]


def test_prometheus_reads_rays_node_list():
    config = yaml.safe_load((manifests.ROOT / "infra" / "prometheus.yml").read_text())
    [ray] = config["scrape_configs"]
    [nodes] = ray["file_sd_configs"]
    assert nodes["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


@pytest.mark.cluster
def test_a_job_is_found_where_ray_starts(monkeypatch):
    """Submit a job without --working-dir to a cluster that was started in the folder of the code."""
    monkeypatch.chdir(manifests.ROOT)
    with local_cluster(cpus=1) as cluster:
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            cluster.dashboard,
        ]
        command += ["--", "python", "jobs/train_stage2.py", "--help"]
        run = subprocess.run(command, env=cluster.env, cwd="/", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "paper-7b" in run.stdout
