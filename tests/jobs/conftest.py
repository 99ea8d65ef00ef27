"""A cluster as others have it: with the dependencies, without this code."""

import subprocess
import sys
import venv
from collections.abc import Iterator

import pytest

from xactor_platform.cluster.local import LocalCluster, local_cluster


@pytest.fixture(scope="package")
def bare_cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    """Its machines' environment has every dependency of this one and not the project."""
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    (theirs,) = (folder / "lib").glob("python3*/site-packages")
    (theirs / "dependencies.pth").write_text(
        f"{ours}\n"
    )  # a path of a .pth: the .pth files in it do not count
    code = "import ray, deepspeed, importlib.util as u; print(u.find_spec('xactor'), u.find_spec('xactor_platform'))"
    found = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-2:] == ["None", "None"], found.stdout
    with local_cluster(cpus=3, python=str(python), log=folder / "ray.log") as cluster:
        yield cluster
