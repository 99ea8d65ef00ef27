"""Test the help, the version and the defaults of the `xactor` command."""

import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import xactor
from xactor.cli import main
from xactor.motion import SamplingConfig
from xactor.motion.noise_levels import HISTORIES
from xactor.options import AnimateOptions
from xactor.render import RenderConfig

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_options_have_the_models_own_defaults():
    assert AnimateOptions().sampling() == SamplingConfig()
    assert AnimateOptions().rendering() == RenderConfig()
    assert get_args(get_args(get_type_hints(AnimateOptions)["history"])[0]) == HISTORIES
    assert {field.name for field in fields(AnimateOptions)} >= {"seed", "paste_back", "max_seconds"}


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"xactor {xactor.__version__}\n"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert build["tool"]["hatch"]["version"]["path"] == "xactor/__init__.py"


@pytest.mark.parametrize("command", ["animate", "dub", "assemble", "selfcheck"])
def test_help_begins_with_an_example_and_explains_every_option(command):
    code = f"""
import sys
from xactor.cli import main
try:
    main([{command!r}, "--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stderr
    above, _, options = done.stdout.partition("options ─")
    assert f"\n    xactor {command} " in above
    # An option begins at the left edge of tyro's box. Its other lines are indented.
    flags = options.split("\n│ -")[2:]
    assert len(flags) >= 2
    for flag in flags:
        text = " ".join(line.strip("│ ") for line in flag.splitlines())
        assert len(text.split("(")[0].split()) > 5, f"no description: {text}"
