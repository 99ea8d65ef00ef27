"""Start a cluster that has the dependencies but not this code."""

import subprocess
import sys
import venv
from collections.abc import Iterator

import pytest

from xactor_platform.cluster.local import LocalCluster, local_cluster


@pytest.fixture(scope="package")
def bare_cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    """Start a cluster whose Python environment has every dependency, but not the project."""
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    dependencies = next(p for p in sys.path if p.endswith("site-packages"))
    (site_packages,) = (folder / "lib").glob("python3*/site-packages")
    # This .pth file adds the folder with the dependencies. The project's own .pth file, which lies in that folder, has
    # no effect: Python ignores .pth files in a folder that a .pth file adds.
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
    code = "import ray, deepspeed, importlib.util as u; print(u.find_spec('xactor'), u.find_spec('xactor_platform'))"
    with pytest.MonkeyPatch.context() as patch:
        # PYTHONPATH may contain the project.
        patch.delenv("PYTHONPATH", raising=False)
        found = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert found.stdout.split()[-2:] == ["None", "None"], found.stdout
        with local_cluster(cpus=3, python=str(python), log=folder / "ray.log") as cluster:
            yield cluster
