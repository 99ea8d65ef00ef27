"""Follow the memory of tensors while code runs, and find the peak."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# The list of the largest tensors is renewed when the peak has grown by this factor, because sorting takes long.
_NOTED_GROWTH = 1.01
_NOTED_KINDS = 5


@dataclass(frozen=True)
class TensorKind:
    """Describe the tensors that one operation made with one shape."""

    operation: str
    """Name of the operation in torch."""
    shape: tuple[int, ...]
    """Shape of the first view of the memory."""
    dtype: str
    """Type of the elements."""


class LiveMemory(TorchDispatchMode):
    """Count the bytes of tensors that operations make inside the block, until the last reference to them is gone.

    Each memory counts once, for however many views. Real tensors count, and fake ones, which have sizes but no memory.
    Memory that a kernel takes for itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self._kinds = WeakIdKeyDictionary()
        self._bytes = Counter[TensorKind]()
        self._counts = Counter[TensorKind]()
        self._noted_at = 0.0
        self.bytes = 0
        """Bytes that are alive now."""
        self.peak_bytes = 0
        """Maximum of `bytes` so far."""
        self.largest: list[tuple[TensorKind, int, int]] = []
        """The kinds of tensors with the most bytes near the peak: the kind, the number of tensors, and their bytes."""

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Never count the memory of these tensors, which exists outside the block."""
        for tensor in tensors:
            self._kinds[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(str(func), tensor)
        return result

    def _count(self, operation: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._kinds:
            return
        kind = TensorKind(operation, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        size = storage.nbytes()
        self._kinds[storage] = kind
        weakref.finalize(storage, self._free, kind, size).atexit = False
        self.bytes += size
        self._bytes[kind] += size
        self._counts[kind] += 1
        if self.bytes > self.peak_bytes:
            self.peak_bytes = self.bytes
            if self.bytes > self._noted_at * _NOTED_GROWTH:
                self._noted_at = self.bytes
                self.largest = [
                    (kind, self._counts[kind], size) for kind, size in self._bytes.most_common(_NOTED_KINDS)
                ]

    def _free(self, kind: TensorKind, size: int) -> None:
        self.bytes -= size
        self._bytes[kind] -= size
        self._counts[kind] -= 1


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(vars(value))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors. Memory that several of them share counts once."""
    storages = WeakIdKeyDictionary()
    for tensor in tensors:
        storages[tensor.untyped_storage()] = None
    return sum(storage.nbytes() for storage in storages)
