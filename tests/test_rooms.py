"""Check that the rooms, which are the top-level folders, stay separate in names, imports and what a process loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str) -> str:
    """Run code in a new interpreter in the checkout, and return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_platform_folder_does_not_shadow_pythons_platform_module():
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform, uuid; print(platform.__file__); platform.system()"
    assert not run_python(code).startswith(str(ROOT))


def test_the_import_contracts_of_pyproject_hold():
    folders = [str(ROOT), str(ROOT / "platform"), str(ROOT / "serving")]
    run_python(
        f"import sys; sys.path[:0] = {folders}\n"
        "from importlinter.cli import lint_imports\n"
        "sys.exit(lint_imports(no_cache=True))\n"
    )


@pytest.mark.slow
def test_xactor_imports_neither_ray_nor_deepspeed():
    # The import of a module that is None in sys.modules fails.
    run_python(
        "import sys, pkgutil, importlib, xactor\n"
        "missing = ('ray', 'deepspeed', 'webdataset', 'xactor_platform', 'xactor_serving')\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "for m in pkgutil.walk_packages(xactor.__path__, 'xactor.'): importlib.import_module(m.name)\n"
    )


def test_processes_that_only_read_and_write_media_do_not_import_torch():
    """Many such processes run at the same time. Torch would take most of their memory and of their start-up time."""
    stages = [f"xactor_platform.dubbing.{name}" for name in ("look", "decode", "encode", "write")]
    run_python(
        f"import importlib, sys\nfor name in {['xactor.decoding', *stages]}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules\n"
    )
