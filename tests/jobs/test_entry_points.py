"""Every job says in its docstring how to run it, and answers --help."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

JOBS = sorted(
    p for p in (Path(__file__).resolve().parents[2] / "jobs").glob("*.py") if not p.name.startswith("_")
)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_its_docstring_is_its_command(job):
    tree = ast.parse(job.read_text())
    assert f"python jobs/{job.name}" in (ast.get_docstring(tree) or "")
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert "_checkout" in names, first


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_it_answers_help(job, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [job.name, "--help"])
    monkeypatch.setattr(sys, "path", [str(job.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage" in capsys.readouterr().out
