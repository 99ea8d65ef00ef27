"""Write a run's metrics as files for TensorBoard, with `--train.tensorboard`."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xactor_platform.training.run.folder import RunFolder

BOARD = "tensorboard"


class Board:
    """Write the metrics of every step to `<run>/tensorboard/`, for `tensorboard --logdir`.

    An object store cannot append to a file. For a run in an object store, the metrics are collected in local files, and
    `flush` uploads these files.

    Args:
        folder: the folder of the run.
        first_step: number of global steps that earlier starts of the run have done.
    """

    def __init__(self, folder: RunFolder, *, first_step: int):
        # tensorboardX is installed because Ray Train depends on it. Its import takes a second, so it is not at the top.
        from tensorboardX import SummaryWriter

        self._folder, self._is_local = folder, folder.location.is_local
        path = (
            f"{folder.location.path}/{BOARD}" if self._is_local else tempfile.mkdtemp(prefix="xactor-board-")
        )
        self._path = Path(path)
        # Let TensorBoard hide the values that an earlier start wrote for steps that are now repeated.
        self._writer = SummaryWriter(path, purge_step=first_step + 1 if first_step else None)

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row of metrics.jsonl."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"train/{name}", value, row["step"])

    def flush(self) -> None:
        """Write all metrics so far to the run's folder."""
        self._writer.flush()
        if not self._is_local:
            for path in self._path.iterdir():
                self._folder.write_bytes(f"{BOARD}/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Write all metrics, and delete the local files of a run in an object store."""
        self.flush()
        self._writer.close()
        if not self._is_local:
            shutil.rmtree(self._path, ignore_errors=True)
