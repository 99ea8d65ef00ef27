"""TensorBoard's files of a run, for who asks for them by `--train.tensorboard`."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xactor_platform.training.run.folder import RunFolder

BOARD = "tensorboard"


class Board:
    """Rank 0's numbers of every step in `<run>/tensorboard/`, for `tensorboard --logdir`.

    An object store cannot append: there, they gather in a local file that `flush` uploads whole.
    """

    def __init__(self, folder: RunFolder, *, first_step: int):
        from tensorboardX import SummaryWriter  # Ray Train has it; a second to import

        self._folder, self._is_local = folder, folder.location.is_local
        path = (
            f"{folder.location.path}/{BOARD}" if self._is_local else tempfile.mkdtemp(prefix="xactor-board-")
        )
        self._path = Path(path)
        # What an earlier start wrote of the steps that run again is hidden.
        self._writer = SummaryWriter(path, purge_step=first_step + 1 if first_step else None)

    def step(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"train/{name}", value, row["step"])

    def flush(self) -> None:
        self._writer.flush()
        if not self._is_local:
            for path in self._path.iterdir():
                self._folder.write_bytes(f"{BOARD}/{path.name}", path.read_bytes())

    def close(self) -> None:
        self.flush()
        self._writer.close()
        if not self._is_local:
            shutil.rmtree(self._path, ignore_errors=True)
