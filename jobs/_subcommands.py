"""Run one of a job's subcommands and import only that subcommand's module, so that --help appears quickly."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Subcommand:
    """Describe a subcommand, whose class is imported only if the user chooses the subcommand."""

    module: str
    """Module that defines the class. The class has a method `execute() -> int`, which returns the exit status."""
    name: str
    """Name of the class. The class's docstring ends with an example of the command."""
    summary: str
    """One line for the list of subcommands in --help, equal to the first line of the class's docstring."""

    def load(self) -> type:
        """Import the class and return it."""
        return getattr(import_module(self.module), self.name)


def run_subcommand(subcommands: Mapping[str, Subcommand], description: str | None) -> int:
    """Parse the command line `JOB.py NAME [options]` and run the subcommand NAME.

    Args:
        subcommands: The subcommands by NAME.
        description: The job's docstring, for its `--help`.

    Returns:
        The exit status.
    """
    chosen = sys.argv[1] if len(sys.argv) > 1 else None
    commands: dict[str, Callable[..., Any]] = {
        name: subcommand.load() if name == chosen else _placeholder(subcommand.summary)
        for name, subcommand in subcommands.items()
    }
    command: Any = tyro.extras.subcommand_cli_from_dict(commands, description=description)
    return command.execute()


def _placeholder(summary: str) -> Callable[[], None]:
    """Return a function that stands for a subcommand that --help lists but the user did not choose. It does nothing."""

    def command() -> None: ...

    command.__doc__ = summary
    return command
