"""Check that an upload to Ray is not too large, and name its largest entry if it is."""

import logging
from collections import Counter
from pathlib import Path

SUBMIT_MAX_BYTES = 100 << 20
"""Maximum size of the folder that `ray job submit --working-dir` uploads. Ray does not compress it."""
PY_MODULES_MAX_BYTES = 512 << 20
"""Maximum size of a folder in `py_modules`, the folders of code that Ray uploads in a runtime environment."""


def check_upload(folder: str | Path, max_bytes: int) -> None:
    """Raise ValueError if the files that Ray would upload from a folder exceed `max_bytes` in total.

    The message names the largest entry of the folder. As in Ray, .rayignore and .gitignore exclude files.
    """
    # This import loads Ray. It stands here because a process that only starts a cluster does not need Ray.
    from ray._private.runtime_env.packaging import _dir_travel

    root = Path(folder).absolute()
    sizes: Counter[str] = Counter()

    def add(path: Path) -> None:
        if path.is_file():
            first, *rest = path.relative_to(root).parts
            sizes[f"{first}/" if rest else first] += path.stat().st_size

    _dir_travel(root, [], add, include_gitignore=True, logger=logging.getLogger(__name__))
    total = sizes.total()
    if total > max_bytes:
        largest, size = sizes.most_common(1)[0]
        raise ValueError(
            f"{root} is too large to upload to Ray: {_mib(total)} of files, at most {_mib(max_bytes)}. "
            f"The largest is {largest} with {_mib(size)}: move it elsewhere or list it in {root / '.rayignore'}"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
