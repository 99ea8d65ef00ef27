"""Give all commands the same exit statuses, error messages and progress lines."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
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


def check_video_paths(sources: Iterable[Path], output: Path) -> None:
    """Check the paths of a video to make, before any work.

    Args:
        sources: The files that the video is made from.
        output: The .mp4 to write.

    Raises:
        ValueError: A source is missing, or the output cannot be written or would replace a source.
    """
    for source in sources:
        if not source.is_file():
            raise ValueError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
        if output.exists() and output.samefile(source):
            raise ValueError(f"{output}: the output would replace what it is made from")
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"{output}: the output must be an .mp4")
    if output.is_dir():
        raise ValueError(f"{output}: the output must be a file, it is a folder")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder to write to")
