"""Copy a training's state to host memory, from which a checkpoint is written while the training goes on."""

import copy
import os
import tempfile
from typing import Any

import torch

TAG = "state"
"""DeepSpeed's tag of what it saves, and so the name of its folder."""


class HostSnapshot:
    """Take what DeepSpeed would write to files into host memory, in the role of its checkpoint engine.

    The memory is kept for the next snapshot, since touching new pages costs more than the copy. The host needs room for
    one copy of the rank's state. The memory is pinned if the state is on a GPU.
    """

    def __init__(self):
        self._root = ""
        self._files: dict[str, Any] = {}
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}

    def take(self, engine: Any, client_state: dict[str, Any]) -> dict[str, Any]:
        """Return this rank's files of a checkpoint by name. They must be written before the next snapshot.

        All ranks call it. The training may go on as soon as it returns.
        """
        usual, engine.checkpoint_engine = engine.checkpoint_engine, self
        self._files = {}
        try:
            # DeepSpeed copies two scripts next to what it saves.
            with tempfile.TemporaryDirectory(prefix="xactor-snapshot-") as self._root:
                engine.save_checkpoint(self._root, tag=TAG, client_state=client_state, save_latest=False)
        finally:
            engine.checkpoint_engine = usual
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._files

    # DeepSpeed calls the following methods of a checkpoint engine.

    def save(self, state_dict: Any, path: str) -> None:
        name = os.path.relpath(path, self._root)
        self._count = 0
        self._files[name] = self._copied(state_dict, name, {})

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there are no folders in memory."""

    def create(self, info: Any) -> None:
        """Do nothing: there is nothing to prepare."""

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False

    def is_data_parallel_writer(self, rank: int) -> bool:
        return rank == 0

    def preserves_storage_sharing(self) -> bool:
        return False

    def _copied(self, thing: Any, name: str, seen: dict[int, Any]) -> Any:
        """Return the same structure with copies of its tensors."""
        if isinstance(thing, torch.Tensor):
            if id(thing) not in seen:
                seen[id(thing)] = self._filled(thing.detach(), name)
            return seen[id(thing)]
        if isinstance(thing, dict):
            # A shallow copy keeps the attributes of an OrderedDict.
            copied = copy.copy(thing)
            for key, value in thing.items():
                copied[key] = self._copied(value, name, seen)
            return copied
        if type(thing) in (list, tuple):
            return type(thing)(self._copied(value, name, seen) for value in thing)
        return copy.deepcopy(thing)

    def _filled(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        self._count += 1
        buffer = self._buffers.get((name, self._count))
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name, self._count] = buffer
        return buffer.copy_(tensor, non_blocking=True)
