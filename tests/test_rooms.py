"""The rooms: `platform/` never shadows Python's own module, and imports run one way."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_platform_folder_never_shadows_pythons_module():
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform, uuid; print(platform.__file__); platform.system()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.startswith(str(ROOT))


def test_xactor_imports_neither_ray_nor_deepspeed_nor_pebble():
    code = (
        "import sys, pkgutil, importlib, xactor\n"
        "missing = ('ray', 'deepspeed', 'webdataset', 'pebble', 'xactor_platform', 'xactor_serving')\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "for m in pkgutil.walk_packages(xactor.__path__, 'xactor.'): importlib.import_module(m.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_only_reads_and_writes_media_does_not_import_torch():
    """Many such processes run side by side, and torch would take most of their memory and of their start."""
    stages = [f"xactor_platform.dubbing.{name}" for name in ("look", "decode", "encode", "write")]
    code = (
        f"import importlib, sys\nfor name in {['xactor.decoding', *stages]}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
