"""A request's files, decoded away from the event loop, and not too many at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np

from xactor.decoding import DecodingPool, Face
from xactor_serving.errors import bad_input, full, too_large

T = TypeVar("T")


class Decoder:
    """For one ingress. Its methods raise ServiceError for a file that is refused, or when too many wait.

    Args:
        processes: how many files are decoded at a time. timeout_s: for one; what takes longer is killed.
    """

    def __init__(self, *, processes: int, timeout_s: float):
        self._pool = DecodingPool(processes=processes, timeout_s=timeout_s)
        self._waiting, self._most = 0, 8 * processes

    async def sound(self, audio: Path, *, max_seconds: float) -> np.ndarray:
        """Float32 [N], mono, 16 kHz."""
        return await self._of(lambda: self._pool.sound(audio, max_seconds=max_seconds))

    async def face(self, image: bytes, *, size: int, paste_back: bool) -> Face:
        return await self._of(lambda: self._pool.face(image, size=size, paste_back=paste_back))

    async def _of(self, begin: Callable[[], Future[T]]) -> T:
        if self._waiting >= self._most:
            raise full(f"{self._waiting} files wait to be decoded, no more may")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(begin())
        except Exception as error:
            refusal = self._pool.refusal(error)
            if refusal is None:
                raise
            raise (too_large if refusal.code == "too_large" else bad_input)(str(refusal)) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._pool.close()
