"""Check that the site builds without a warning, and that docs/commands.md describes the commands as they are."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    reference = (tmp_path / "site" / "python-api" / "index.html").read_text()
    assert "XActorPipeline" in reference
    assert "DDIM" in reference


@pytest.mark.slow
def test_page_of_commands_is_current(tmp_path: Path):
    """Generate the page in another process, because the commands change the process that runs them."""
    code = "import sys; sys.path.insert(0, 'docs'); import generate_commands as g; print(g.page(), end='')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == (ROOT / "docs" / "commands.md").read_text(), (
        "docs/commands.md is out of date: run `make commands`"
    )


def test_every_job_is_on_the_page_of_commands():
    spec = importlib.util.spec_from_file_location("generate_commands", ROOT / "docs" / "generate_commands.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "commands.md").read_text()
    for program, subcommand in module.commands():
        prefix = "" if program.startswith("xactor") else "python "
        assert f"\n## {prefix}{program}{f' {subcommand}' if subcommand else ''}\n" in text
