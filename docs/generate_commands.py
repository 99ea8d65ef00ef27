"""Write docs/commands.md: the help text of every command.

    python docs/generate_commands.py

`main` runs every command with `--help` in this process, because a new process takes seconds to import torch and Ray.
"""

import contextlib
import io
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "commands.md"
COLUMNS = 100
"""Width of the help texts, in characters."""

# Subcommands whose help the page shows, by program. Other jobs have no subcommands.
SUBCOMMANDS = {
    "jobs/bench.py": ("checkpoint", "crashes", "curate", "data", "dub", "motion", "render", "serve", "train"),
    "jobs/evaluate.py": ("self-driven", "cross-driven"),
    "jobs/report.py": ("ablation", "acting", "dry-run", "motion", "render", "scale"),
    "jobs/train_stage1.py": ("tiny",),
    "jobs/train_stage2.py": ("tiny",),
    "jobs/user_study.py": ("make", "count"),
    "xactor": ("animate", "dub", "assemble", "selfcheck"),
}
INTRODUCTION = """# Commands

`make commands` generates this page from the commands' own help; do not edit it. A test checks that it is current.

An option that belongs to a group is written with the group's name and a dot: `--train.steps 400`. In the help of
`train_stage1.py` and `train_stage2.py` the defaults are those of the preset `tiny`;
`python jobs/train_stage2.py small --help` shows the defaults of another preset.
"""


def main() -> None:
    """Write docs/commands.md."""
    TARGET.write_text(page())


def page() -> str:
    """Return the page as Markdown."""
    sections = [INTRODUCTION]
    for program, subcommand in commands():
        words = [program, *([subcommand] if subcommand else [])]
        line = " ".join(words if program.startswith("xactor") else ["python", *words])
        sections.append(f"## {line}\n\n```text\n{help_text(program, subcommand)}\n```\n")
    return "\n".join(sections)


def commands() -> Iterator[tuple[str, str | None]]:
    """Yield each program with each of its subcommands."""
    jobs = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "jobs").glob("*.py")
        if not path.name.startswith("_") and 'if __name__ == "__main__":' in path.read_text()
    )
    for program in ["xactor", "xactor-serve", *jobs]:
        for subcommand in SUBCOMMANDS.get(program, (None,)):
            yield program, subcommand


def help_text(program: str, subcommand: str | None) -> str:
    """Return what `program subcommand --help` prints."""
    words = [word for word in (subcommand, "--help") if word]
    printed = io.StringIO()
    saved_argv, saved_path, saved_columns = sys.argv, list(sys.path), os.environ.get("COLUMNS")
    sys.argv = [Path(program).name, *words]
    # A job imports its neighbours in jobs/, such as `_checkout`.
    sys.path.insert(0, str(ROOT / "jobs"))
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            _run(program)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{program} {words} exited with {ended.code}: {printed.getvalue()}") from ended
    finally:
        sys.argv, sys.path[:] = saved_argv, saved_path
        if saved_columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = saved_columns
    # Remove the terminal's colour codes, because a Markdown page does not show them as colours.
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _run(program: str) -> None:
    """Run a program in this process, with the arguments in `sys.argv`."""
    if program == "xactor":
        from xactor.cli import main as xactor

        xactor(sys.argv[1:])
    elif program == "xactor-serve":
        from xactor_serving.command import main as xactor_serve

        xactor_serve()
    else:
        # The help shows the path that is run as the program's name, so the path is relative to the checkout.
        with contextlib.chdir(ROOT):
            runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
