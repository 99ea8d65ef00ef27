"""Keys and values of streams' histories, computed once a chunk and read by every DDIM step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from transformers import Qwen2Config


class HistoryCache:
    """Room for the histories of so many rows, one a stream and guidance branch: memory that is taken once.

    A row's history stands at the end of its `capacity` places, so that rows of different lengths read together differ
    only at their beginning; behind them is room for the chunk in the making.
    """

    def __init__(
        self, config: Qwen2Config, *, rows: int, capacity: int, chunk_frames: int, like: Tensor
    ) -> None:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_key_value_heads or config.num_attention_heads
        shape = (rows, heads, capacity + chunk_frames, width)
        self.capacity = capacity
        self.layers = [
            (like.new_empty(shape), like.new_empty(shape)) for _ in range(config.num_hidden_layers)
        ]

    def clear(self, rows: slice) -> None:
        """Before others use these rows: what is masked is still multiplied, and NaN times nothing is NaN."""
        for keys, values in self.layers:
            keys[rows] = values[rows] = 0

    def write(self, rows: slice, frames: int) -> "HistoryPass":
        """For the pass over the noised histories of neighbouring rows, all `frames` long, which keeps them."""
        return _Writing(self, rows, frames)

    def read(self, rows: Tensor, frames: Tensor) -> "HistoryPass":
        """For a pass over chunks that continue these histories. It keeps nothing.

        Args:
            rows: int [B].
            frames: how long each one's history is, int [B].
        """
        return _Reading(self, rows, frames)


class HistoryPass(ABC):
    """What one forward pass sees of the cache. transformers' layers call `update`.

    Attributes:
        frames: how much history each row continues, int [B].
        width: how many keys of it there are, padded at the beginning: the longest row's.
    """

    frames: Tensor
    width: int

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to, [B, heads, width + T, d], from those of the pass, [B, heads, T, d]."""


class _Writing(HistoryPass):
    def __init__(self, cache: HistoryCache, rows: slice, frames: int):
        self._cache, self._rows = cache, rows
        self._places = slice(cache.capacity - frames, cache.capacity)
        self.frames = torch.zeros(rows.stop - rows.start, dtype=torch.long, device=cache.layers[0][0].device)
        self.width = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        for kept, new in zip(self._cache.layers[layer], (keys, values), strict=True):
            kept[self._rows, :, self._places] = new
        return keys, values


class _Reading(HistoryPass):
    def __init__(self, cache: HistoryCache, rows: Tensor, frames: Tensor):
        self._cache, self._rows = cache, rows.to(cache.layers[0][0].device)
        self.width = int(frames.max())
        self.frames = frames.to(self._rows.device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        first, last = self._cache.capacity - self.width, self._cache.capacity + keys.shape[2]
        both = []
        for kept, new in zip(self._cache.layers[layer], (keys, values), strict=True):
            seen = kept[:, :, first:last].index_select(0, self._rows)
            seen[:, :, self.width :] = new
            both.append(seen)
        return both[0], both[1]
