"""Test infra/kuberay against KubeRay's and Kubernetes' schemas, with Ray's own readers, and for consistency."""

import importlib
import re
import runpy
import shlex
import sys

import crd_schema
import manifests
import pytest
import tyro
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve._private.constants import DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_S
from ray.serve.schema import ServeDeploySchema

from xactor_platform.dubbing.dub_config import DubConfig
from xactor_platform.storage.location import absolute

# Pairs of a file's name and an object in it.
OBJECTS = list(manifests.resources())
CUSTOM = [pair for pair in OBJECTS if pair[1]["apiVersion"] == "ray.io/v1"]
CORE = [pair for pair in OBJECTS if pair[1]["apiVersion"] != "ray.io/v1"]
SPECS = manifests.cluster_specs()
KUBERNETES = "1.33"
README = (manifests.ROOT / "infra" / "README.md").read_text()
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "m": 1e-3, "": 1}


def name_of(pair) -> str:
    return f"{pair[0]}:{pair[1]['kind']}/{pair[1]['metadata']['name']}"


def quantity(text: str | int) -> float:
    """Return the number of a Kubernetes quantity such as `500m`, `24Gi` or `8`."""
    number, unit = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", str(text)).groups()
    return float(number) * UNITS[unit]


def pods():
    """Yield (file, group, pod template) of every Ray pod."""
    for file, spec in SPECS.items():
        for group, template in manifests.templates(spec).items():
            yield file, group, template


@pytest.mark.parametrize("pair", CUSTOM, ids=name_of)
def test_kuberay_accepts_the_object(pair):
    errors = crd_schema.validator(pair[1]["kind"]).iter_errors(pair[1])
    assert not [f"{error.json_path}: {error.message[:200]}" for error in errors]


@pytest.mark.parametrize("pair", CORE, ids=name_of)
def test_kubernetes_accepts_the_object(pair):
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(pair[1], KUBERNETES, strict=True)


def test_objects_share_a_namespace_and_have_unique_names():
    names = [
        (o["kind"], o["metadata"]["name"]) for _, o in OBJECTS if o["metadata"].get("namespace") == "xactor"
    ]
    others = [o["kind"] for _, o in OBJECTS if o["metadata"].get("namespace") != "xactor"]
    assert len(names) == len(set(names))
    assert others == ["Namespace"]


@pytest.mark.parametrize("file", SPECS)
def test_groups_match_ray_cluster_yaml(file):
    """Ray's autoscaler reads the same groups, labels and priorities as in ray_cluster.yaml."""
    launcher = manifests.launcher_config()["available_node_types"]
    for name, group in autoscaling(file)["available_node_types"].items():
        if name == "headgroup":
            assert group["resources"]["CPU"] == 0
            continue
        assert group["labels"] == launcher[name]["labels"]
        if not file.startswith("train"):
            assert group.get("priority") == launcher[name].get("priority")
        assert group["resources"]["GPU"] <= launcher[name]["resources"]["GPU"]


@pytest.mark.parametrize(
    ("file", "group"), [(f, g["groupName"]) for f in SPECS for g in SPECS[f]["workerGroupSpecs"]]
)
def test_autoscaler_starts_the_selected_group(file, group):
    config = autoscaling(file)
    for worker in config["available_node_types"].values():
        worker["min_workers"] = 0
    demand = ({"GPU": 1.0, "CPU": 1.0}, {"ray.io/node-group": group})
    assert manifests.launched(config, [demand]) == {group: 1}


def test_every_cluster_except_training_uses_autoscaler_v2():
    for file, spec in SPECS.items():
        sizes = [{g["replicas"], g["minReplicas"], g["maxReplicas"]} for g in spec["workerGroupSpecs"]]
        fixed = all(len(different) == 1 for different in sizes)
        assert fixed == file.startswith("train")
        assert spec.get("enableInTreeAutoscaling", False) != fixed
        assert fixed or spec["autoscalerOptions"]["version"] == "v2"


def test_ray_has_the_pinned_version_and_needs_the_token():
    pinned = re.search(r"^ray==(.+)$", (manifests.ROOT / "constraints.txt").read_text(), re.M)
    for spec in SPECS.values():
        assert spec["rayVersion"] == pinned[1]
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}


def test_long_lived_clusters_survive_the_loss_of_their_head():
    for file, document in CUSTOM:
        assert ("gcsFaultToleranceOptions" in SPECS[file]) == (document["kind"] != "RayJob")


def test_named_secrets_exist_and_hold_only_placeholders():
    secrets = {o["metadata"]["name"]: set(o["stringData"]) for _, o in OBJECTS if o["kind"] == "Secret"}
    asked = {("ray-token", "auth_token")} | set(secret_keys([o for _, o in OBJECTS]))
    assert asked == {(name, key) for name, keys in secrets.items() for key in keys}
    for line in (manifests.KUBERAY / "secrets.yaml").read_text().split("stringData:")[1:]:
        assert re.match(r'\s+\w+: "\$\{[A-Z_]+\}"', line)


def test_requests_equal_limits():
    for file, group, template in pods():
        containers = template["spec"]["initContainers"] + template["spec"]["containers"]
        for container in containers:
            assert container["resources"]["requests"] == container["resources"]["limits"], (file, group)
    for spec in SPECS.values():
        sidecar = spec.get("autoscalerOptions", {}).get("resources", {})
        assert sidecar.get("requests") == sidecar.get("limits")


def test_pods_fit_their_nodes():
    """A node holds as many pods as its GPUs allow, and keeps a CPU and a tenth of its memory for the system."""
    instances = {
        name: g["node_config"]["InstanceType"]
        for name, g in manifests.launcher_config()["available_node_types"].items()
    }
    for file, group, template in pods():
        cpus, gib, gpus = manifests.INSTANCES[instances[group]]
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        pods_per_node = gpus / limits["nvidia.com/gpu"] if gpus else 1
        sidecar = 0.5 if group == "head" else 0
        assert pods_per_node == int(pods_per_node), (file, group)
        assert pods_per_node * quantity(limits["cpu"]) + sidecar <= cpus - 1, (file, group)
        assert pods_per_node * quantity(limits["memory"]) <= 0.9 * gib * UNITS["Gi"], (file, group)


def test_object_store_has_shared_memory_within_the_limit():
    for file, group, template in pods():
        container = template["spec"]["containers"][0]
        mounted = next(m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
        volume = next(v["emptyDir"] for v in template["spec"]["volumes"] if v["name"] == mounted)
        assert volume["medium"] == "Memory", (file, group)
        memory = quantity(container["resources"]["limits"]["memory"])
        assert 0 < quantity(volume["sizeLimit"]) <= memory / 2, (file, group)


def test_nothing_runs_as_root():
    for file, group, template in pods():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"], (file, group)
        for container in pod["initContainers"] + pod["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        scales = SPECS[file].get("enableInTreeAutoscaling", False)
        assert pod["automountServiceAccountToken"] == (group == "head" and scales), (file, group)


def test_pods_of_a_group_are_equal_in_every_file():
    """Only labels, API keys, weights and the autoscaler's rights may differ."""
    seen = {}
    for file, group, template in pods():
        pod = {k: v for k, v in template["spec"].items() if k != "automountServiceAccountToken"}
        # The weights are in weights/xactor in some files and in weights in others.
        pod = yaml.safe_load(yaml.safe_dump(pod).replace("weights/xactor", "weights"))
        pod["containers"][0].pop("env", None)
        assert seen.setdefault(group, pod) == pod, (file, group)
        assert template["metadata"]["labels"]["app.kubernetes.io/instance"] == file.removesuffix(".yaml")


def test_weights_are_copied_where_the_container_reads_them():
    for file, group, template in pods():
        fetch, ray = template["spec"]["initContainers"][0], template["spec"]["containers"][0]
        target = fetch["args"][1]
        for container in (fetch, ray):
            assert target in [mount["mountPath"] for mount in container["volumeMounts"]], (file, group)
        assert target.removeprefix("/home/ray/xactor/") == fetch["args"][0].removeprefix("s3://bucket/")


def test_grace_period_covers_draining_and_fits_the_spot_notice():
    drains = [d["graceful_shutdown_timeout_s"] for d in application()["deployments"]]
    for file, group, template in pods():
        grace = template["spec"]["terminationGracePeriodSeconds"]
        # AWS ends a spot instance two minutes after its notice. 30 s are left after draining.
        assert max(*drains, DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_S) + 30 <= grace <= 120, (file, group)


def test_serve_accepts_the_application_and_replicas_have_nodes():
    ServeDeploySchema.model_validate(serve_config())
    groups = {group["groupName"]: group for group in SPECS["serve.yaml"]["workerGroupSpecs"]}
    for deployment in application()["deployments"]:
        options, scale = deployment["ray_actor_options"], deployment["autoscaling_config"]
        group = groups[options["label_selector"]["ray.io/node-group"]]
        per_node = manifests.templates(SPECS["serve.yaml"])[group["groupName"]]["spec"]["containers"][0]
        gpus = per_node["resources"]["limits"]["nvidia.com/gpu"] / options["num_gpus"]
        assert group["minReplicas"] * gpus >= scale["min_replicas"]
        assert group["maxReplicas"] * gpus >= scale["max_replicas"]


def test_the_builder_of_the_application_exists():
    module, builder = application()["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), builder))


@pytest.mark.parametrize("stage", ["1", "2"])
def test_training_command_parses_and_fits_its_nodes(stage, monkeypatch):
    """The ranks of the preset use every GPU of the cluster, and leave a CPU for Ray Data."""
    from xactor_platform.cluster.capacity import DATA_CPUS
    from xactor_platform.training import stage1_config, stage2_config
    from xactor_platform.training.command import parse

    job = command(f"train-stage{stage}.yaml")
    assert (manifests.ROOT / job[1]).is_file()
    monkeypatch.setattr("xactor_platform.training.command.saved_config", lambda folder: None)
    config = parse(job[2:], (stage1_config if stage == "1" else stage2_config).PRESETS)
    assert config.run.storage == "s3://bucket/runs"
    if stage == "2":
        # With shards at a URI, the export has the audio encoder only where the command names it.
        assert config.data.audio_encoder == absolute("weights/wav2vec2")
        assert f'--output "{config.data.shards.replace("bucket", "$BUCKET")}" --audio-encoder' in README
    (group,) = SPECS[f"train-stage{stage}.yaml"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] * limits["nvidia.com/gpu"] == config.scale.ranks
    assert limits["nvidia.com/gpu"] * config.scale.cpus_per_rank + DATA_CPUS <= quantity(limits["cpu"])


def test_dubbing_command_parses_and_fits_its_nodes():
    job = command("dub.yaml")
    assert job[:2] == ["python", "jobs/dub_bulk.py"]
    assert (manifests.ROOT / job[1]).is_file()
    config = tyro.cli(DubConfig, args=job[2:])
    assert config.manifest == "s3://bucket/items.jsonl"
    pools = config.pools
    assert pools.groups, "the actors of each model run on its own nodes"
    for group in SPECS["dub.yaml"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        pool = getattr(pools, group["groupName"])
        assert config.gpus(pool) == limits["nvidia.com/gpu"]
        assert pool.max <= group["maxReplicas"]


def test_budgets_protect_heads_and_training():
    """Each pod is in at most one budget, and no budget requires more pods than its cluster always has."""
    budgets = [o for _, o in OBJECTS if o["kind"] == "PodDisruptionBudget"]
    kept = {b["metadata"]["name"]: 0 for b in budgets}
    for file, group, template in pods():
        own = {"ray.io/node-type": "head" if group == "head" else "worker"}
        own |= template["metadata"]["labels"] | ({} if group == "head" else {"ray.io/group": group})
        matched = [b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= own.items()]
        assert len(matched) <= 1, (file, group)
        assert matched or group != "head", (file, group)
        min_pods = {g["groupName"]: g["minReplicas"] for g in SPECS[file]["workerGroupSpecs"]} | {"head": 1}
        for budget in matched:
            kept[budget["metadata"]["name"]] += min_pods[group]
            if file.startswith("train"):
                assert budget["spec"]["minAvailable"] == min_pods[group]
    assert all(0 < b["spec"]["minAvailable"] <= kept[b["metadata"]["name"]] for b in budgets)


def test_network_allows_only_the_named_ports():
    policies = {o["metadata"]["name"]: o["spec"] for _, o in OBJECTS if o["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {}
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule.get("from"), f"{name}: from everywhere"
            for port in rule.get("ports", [{"port": "all"}]):
                for peer in rule["from"]:
                    opened.setdefault(port["port"], set()).add(frozenset(labels(peer).items()))
    ray = frozenset({("ray.io/is-ray-node", "yes")})
    assert opened["all"] == {ray}, "6379, 10001 and Ray's free ports are open to Ray's own pods alone"
    assert 10001 not in opened
    assert opened[8265] == {
        frozenset(
            {
                ("kubernetes.io/metadata.name", "kuberay-system"),
                ("app.kubernetes.io/name", "kuberay-operator"),
            }
        ),
        frozenset(
            {("ray.io/originated-from-crd", "RayJob"), ("app.kubernetes.io/created-by", "kuberay-operator")}
        ),
    }
    assert frozenset({("xactor/client", "true")}) in opened[8000]
    # The dashboard and its jobs, Serve, three ports of metrics, and Redis or the GCS.
    assert opened.keys() == {"all", 8265, 8000, 8080, 44217, 44227, 6379}


def labels(peer) -> dict[str, str]:
    return {
        key: value
        for selector in ("namespaceSelector", "podSelector")
        for key, value in peer.get(selector, {}).get("matchLabels", {}).items()
    }


def autoscaling(file):
    """Return the autoscaler's config of a cluster, made by the code that KubeRay's autoscaler runs."""
    return _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "xactor", "namespace": "xactor"}, "spec": SPECS[file]}
    )


def serve_config():
    (service,) = [o for _, o in CUSTOM if o["kind"] == "RayService"]
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def application():
    return serve_config()["applications"][0]


def command(file) -> list[str]:
    return shlex.split(next(o for name, o in CUSTOM if name == file)["spec"]["entrypoint"])


def secret_keys(tree):
    """Yield (name, key) of every secretKeyRef in a tree."""
    if isinstance(tree, dict):
        if "secretKeyRef" in tree:
            yield tree["secretKeyRef"]["name"], tree["secretKeyRef"]["key"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from secret_keys(part)


def test_readme_names_existing_files_and_the_schemas_version():
    for path in re.findall(r"\binfra/[\w./-]+\w", README):
        assert (manifests.ROOT / path).exists(), path
    for name in re.findall(r"\bput ([\w-]+)", README):
        assert (manifests.KUBERAY / f"{name}.yaml").is_file(), name
    schemas = (crd_schema.CRDS / "README.md").read_text()
    (version,) = set(re.findall(r"--version (\d+\.\d+\.\d+)", README))
    assert f"KubeRay v{version}," in schemas
    assert f"--version {KUBERNETES} " in README


# The jobs that the README submits, as lists of words.
SUBMITTED = [
    shlex.split(found.replace("$BUCKET", "bucket"))
    for found in re.findall(
        r"ray job submit (?:--no-wait )?-- (python jobs/[^`]+?)\n *```", README.replace("\\\n", "")
    )
]


@pytest.mark.parametrize("command", SUBMITTED, ids=lambda command: command[1])
def test_readme_commands_parse(command, monkeypatch):
    """Each job that the README submits exists and accepts its options."""
    assert command[0] == "python"
    job = manifests.ROOT / command[1]
    # `--help` after valid options prints the help. An unknown option exits with 2.
    monkeypatch.setattr("sys.argv", [command[1], *command[2:], "--help"])
    monkeypatch.setattr("sys.path", [str(job.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code in (0, None)


def test_readme_has_the_papers_recipe():
    jobs = [command[1].removeprefix("jobs/") for command in SUBMITTED]
    assert jobs == ["curate.py", "train_stage1.py", "precompute.py", "train_stage2.py", "dub_bulk.py"]
    assert "--working-dir" not in " ".join(word for command in SUBMITTED for word in command)
