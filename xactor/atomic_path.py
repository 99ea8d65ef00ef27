"""Write a file or a folder under a temporary name, and rename it when it is complete."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Maximum length of a file's name on Linux and macOS.
_MAX_NAME_BYTES = 255


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `target`, and rename it to `target` when the block ends without an error.

    A reader sees either the old file or the complete new one. If the block raises, the temporary path is deleted and
    `target` stays unchanged. Several writers of one file may run concurrently: the last one to finish wins.

    Args:
        target: The file to write, which may exist, or the folder to write, which may exist only if it is empty. The
            parent folder must exist.

    Raises:
        OSError: `target` is a folder that is not empty.
    """
    target = Path(target)
    partial = target.with_name(_partial_name(target.name))
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        _delete(partial)
        raise


def _partial_name(name: str) -> str:
    """Return a temporary name for a file. A long name is cut, because its temporary name must be legal too."""
    ending = f".{uuid.uuid4().hex[:8]}.partial"
    room = _MAX_NAME_BYTES - len(ending) - 1
    beginning = name.encode("utf-8", "surrogateescape")[:room]
    # The cut may fall inside a character.
    return f".{beginning.decode('utf-8', 'ignore')}{ending}"


def _delete(path: Path) -> None:
    """Delete a file or a folder with all its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
