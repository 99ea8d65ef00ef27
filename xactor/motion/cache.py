"""Cache the keys and values of the streams' histories, which are computed once per chunk and read by every DDIM step.

A stream is the motion of one recording. Its frames are denoised together in chunks. A chunk's history is the frames
before it that the model sees.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from transformers import Qwen2Config


class HistoryCache:
    """Hold the keys and values of the histories of all rows. Its memory is allocated once.

    A row belongs to one guidance branch of one stream: the conditional or the unconditional branch. Every history ends
    at position `capacity`. So histories of different lengths, read together, are padded only at their beginning. After
    that position there is room for the chunk that is being denoised.
    """

    def __init__(
        self, config: Qwen2Config, *, rows: int, capacity: int, chunk_frames: int, like: Tensor
    ) -> None:
        """Allocate the cache.

        Args:
            config: The config of the transformer whose keys and values are cached.
            rows: Number of rows.
            capacity: Maximum length of a history, in frames.
            chunk_frames: Maximum length of a chunk, in frames.
            like: A tensor of the cache's dtype, on the cache's device.
        """
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_key_value_heads or config.num_attention_heads
        shape = (rows, heads, capacity + chunk_frames, width)
        self.capacity = capacity
        self.layers = [
            (like.new_empty(shape), like.new_empty(shape)) for _ in range(config.num_hidden_layers)
        ]

    def clear(self, rows: slice) -> None:
        """Set rows to zero before another stream uses them."""
        # Old memory may hold NaN. Attention multiplies masked values by 0, but 0 times NaN is NaN.
        for keys, values in self.layers:
            keys[rows] = values[rows] = 0

    def write(self, rows: slice, frames: int) -> "HistoryPass":
        """Return the view for a forward pass over noised histories, which writes their keys and values to the cache.

        Args:
            rows: The cache's rows, one for each row of the pass.
            frames: Length of the histories in frames, the same for all rows.
        """
        return _WritingPass(self, rows, frames)

    def read(self, rows: Tensor, frames: Tensor) -> "HistoryPass":
        """Return the view for a forward pass over chunks that continue histories. The pass does not change the cache.

        Args:
            rows: The cache's row for each row of the pass, int [B].
            frames: Length of the history of each row in frames, int [B].
        """
        return _ReadingPass(self, rows, frames)


class HistoryPass(ABC):
    """Present the cache to one forward pass.

    It takes the place of transformers' own key-value cache: every layer calls `update`.
    """

    frames: Tensor
    """Length of the history that each row continues, in frames, int [B]."""
    width: int
    """Number of history keys per row, which is the length of the longest history. Shorter histories are padded at the
    beginning."""

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """Return the keys and values to attend to, [B, heads, width + T, d].

        Args:
            keys: Keys of the pass itself, [B, heads, T, d].
            values: Values of the pass itself, [B, heads, T, d].
            layer: Number of the layer.
        """


class _WritingPass(HistoryPass):
    def __init__(self, cache: HistoryCache, rows: slice, frames: int):
        self._cache, self._rows = cache, rows
        self._positions = slice(cache.capacity - frames, cache.capacity)
        # The frames of the pass are themselves the history, so no history precedes them.
        self.frames = torch.zeros(rows.stop - rows.start, dtype=torch.long, device=cache.layers[0][0].device)
        self.width = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        for cached, new in zip(self._cache.layers[layer], (keys, values), strict=True):
            cached[self._rows, :, self._positions] = new
        return keys, values


class _ReadingPass(HistoryPass):
    def __init__(self, cache: HistoryCache, rows: Tensor, frames: Tensor):
        self._cache, self._rows = cache, rows.to(cache.layers[0][0].device)
        self.width = int(frames.max())
        self.frames = frames.to(self._rows.device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        first, last = self._cache.capacity - self.width, self._cache.capacity + keys.shape[2]
        keys_and_values = []
        for cached, new in zip(self._cache.layers[layer], (keys, values), strict=True):
            # index_select copies, so the chunk's keys and values do not enter the cache.
            visible = cached[:, :, first:last].index_select(0, self._rows)
            visible[:, :, self.width :] = new
            keys_and_values.append(visible)
        return keys_and_values[0], keys_and_values[1]
