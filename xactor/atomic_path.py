"""Write a file or a folder under another name, and rename it once it is complete."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a path next to `target` to write to, and rename it to `target` when the block ends without an error.

    A reader sees the old file or the complete new one. If the block raises, what it wrote is deleted and `target`
    stays as it was. Concurrent writers do not disturb each other: the last one to finish wins.

    Args:
        target: a file, existing or not, or a folder that does not exist or is empty. Its parent must exist.

    Raises:
        OSError: `target` is a folder that is not empty.
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        _delete(partial)
        raise


def _delete(path: Path) -> None:
    """Delete a file or a folder with all its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
