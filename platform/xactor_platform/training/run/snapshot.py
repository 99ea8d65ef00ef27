"""Copy the state of a training to host memory. From there a checkpoint is written while the training goes on."""

import copy
import os
import tempfile
from typing import Any

import torch

TAG = "state"
"""DeepSpeed's tag of a checkpoint, which is the name of the subfolder that DeepSpeed saves to."""


class HostSnapshot:
    """Act as DeepSpeed's checkpoint engine, and copy to host memory what DeepSpeed would write to files.

    The memory is kept for the next snapshot, because the first use of newly allocated memory takes longer than the
    copy. Each rank needs host memory for one copy of its state. The memory is pinned (page-locked) if the state is on a
    GPU.
    """

    def __init__(self):
        self._root = ""
        self._files: dict[str, Any] = {}
        # Copies of tensors. Each key is the name of a file and the number of the tensor in this file.
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}

    def take(self, engine: Any, client_state: dict[str, Any]) -> dict[str, Any]:
        """Return the content of this rank's files of a checkpoint, by the name of the file.

        All ranks must call it. The training may go on as soon as the call returns. The next snapshot overwrites the
        content.

        Args:
            engine: the DeepSpeed engine whose state is copied.
            client_state: further state that is saved with the engine's.
        """
        original_engine, engine.checkpoint_engine = engine.checkpoint_engine, self
        self._files = {}
        try:
            # The folder receives only two scripts, which DeepSpeed copies next to each checkpoint.
            with tempfile.TemporaryDirectory(prefix="xactor-snapshot-") as self._root:
                engine.save_checkpoint(self._root, tag=TAG, client_state=client_state, save_latest=False)
        finally:
            engine.checkpoint_engine = original_engine
        # Copies from the GPU are asynchronous.
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._files

    # DeepSpeed calls the following methods of a checkpoint engine.

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what DeepSpeed would save to the file `path`."""
        name = os.path.relpath(path, self._root)
        self._tensor_number = 0
        self._files[name] = self._copy(state_dict, name, {})

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

    def _copy(self, thing: Any, name: str, seen: dict[int, Any]) -> Any:
        """Return the same structure with copies of its tensors.

        Args:
            thing: a tensor, a value, or a structure of these.
            name: name of the file that `thing` belongs to.
            seen: copies by the `id` of the original tensor, so that a tensor that occurs twice is copied once.
        """
        if isinstance(thing, torch.Tensor):
            if id(thing) not in seen:
                seen[id(thing)] = self._copy_tensor(thing.detach(), name)
            return seen[id(thing)]
        if isinstance(thing, dict):
            # A shallow copy keeps the attributes of an OrderedDict.
            copied = copy.copy(thing)
            for key, value in thing.items():
                copied[key] = self._copy(value, name, seen)
            return copied
        if type(thing) in (list, tuple):
            return type(thing)(self._copy(value, name, seen) for value in thing)
        return copy.deepcopy(thing)

    def _copy_tensor(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Copy a tensor of the file `name` to the memory that the same tensor had in the previous snapshot."""
        self._tensor_number += 1
        buffer = self._buffers.get((name, self._tensor_number))
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name, self._tensor_number] = buffer
        return buffer.copy_(tensor, non_blocking=True)
