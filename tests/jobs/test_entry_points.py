"""Test that --help of every command has an example and describes every option, and that jobs say how to submit them."""

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import BENCHES
from report import REPORTS

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("_"))
# Jobs that are not submitted: they start a cluster of their own, or need none.
LOCAL = {"bench", "demo", "local_cluster", "make_examples"}
PAGE = runpy.run_path(str(ROOT / "docs" / "generate_commands.py"))
COMMANDS = list(PAGE["commands"]())


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Undo what a command changes in the process that runs it."""
    environ, sigterm, sigint = (
        dict(os.environ),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
    )
    yield
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGTERM, sigterm)
    signal.signal(signal.SIGINT, sigint)


def options(text: str) -> dict[str, str]:
    """Return the description of each option in a command's help, without its default, by the option's name."""
    found: dict[str, str] = {}
    name = None
    for line in text.splitlines():
        if re.match(r"  -{1,2}[a-zA-Z]", line):
            header, _, rest = line.strip().partition("  ")
            name = re.findall(r"(?<!\S)-{1,2}[a-zA-Z][\w.-]*", header)[-1]
            found[name] = rest.strip()
        elif name and line.startswith("      "):
            found[name] += " " + line.strip()
        else:
            name = None
    default = r"\((default|required|optional|unset|repeatable)\b.*"
    return {name: re.sub(default, "", description).strip() for name, description in found.items()}


def test_options_returns_an_empty_text_for_an_option_without_one():
    text = "\n".join(
        [
            "usage: x [-h]",
            "",
            "  --seed INT           Seed. (default: 0)",
            "  --very-long {None}|PATH",
            "                       (default: None)",
        ]
    )
    assert options(text) == {"--seed": "Seed.", "--very-long": ""}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(filter(None, command)))
def test_help_has_an_example_and_a_text_for_every_option(command):
    text = PAGE["help_text"](*command)
    _, _, described = text.partition("\n\n")
    program = command[0] if command[0].startswith("xactor") else f"python {command[0]}"
    assert re.search(rf"{program}\b", described), f"no example in\n{text}"
    assert not [name for name, description in options(described).items() if not description], text


def test_the_page_of_commands_has_all_benches_and_reports():
    assert PAGE["SUBCOMMANDS"]["jobs/bench.py"] == tuple(BENCHES)
    assert PAGE["SUBCOMMANDS"]["jobs/report.py"] == tuple(REPORTS)


@pytest.mark.parametrize(
    "command", [*BENCHES.values(), *REPORTS.values()], ids=lambda command: command.module
)
def test_summary_of_a_subcommand_is_the_first_line_of_its_docstring(command):
    assert (command.load().__doc__ or "").splitlines()[0] == command.summary


def test_help_of_benches_imports_no_heavy_package():
    """Help must appear within a second, so it imports neither torch nor Ray nor NumPy."""
    code = (
        "import runpy, sys\n"
        "for words in [[], *([name] for name in sys.argv[1:])]:\n"
        "    sys.argv = ['bench.py', *words, '--help']\n"
        "    try: runpy.run_path('jobs/bench.py', run_name='__main__')\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'ray', 'numpy'} & set(sys.modules), words\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *BENCHES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "jobs"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_docstring_of_a_job_has_its_command(job):
    tree = ast.parse(job.read_text())
    docstring = ast.get_docstring(tree) or ""
    submitted = "" if job.stem in LOCAL else "ray job submit --working-dir . -- "
    assert f"{submitted}python jobs/{job.name}" in docstring
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert "_checkout" in names, "it must import _checkout first, which makes the code importable"
