"""Give all commands the same exit statuses, error messages and progress lines."""

import sys
from collections.abc import Callable
from typing import NoReturn


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main function and exit with its status.

    A ValueError or OSError is an error that the user can correct: print its message to stderr and exit with status 2.

    Args:
        main: The main function. It returns the exit status; None means 0.
    """
    try:
        status = main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def print_now(line: str) -> None:
    """Print a progress line and flush it, so that it appears at once even if stdout is a pipe."""
    print(line, flush=True)
