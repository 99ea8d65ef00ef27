"""Decode a request's files outside the event loop, and bound the number of files that wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np

from xactor.decoding import DecodingPool, FaceCrop
from xactor.sandbox import ProcessLost
from xactor_serving.errors import bad_input, broken, full, too_large

_MAX_WAITING_PER_PROCESS = 8
T = TypeVar("T")


class Decoder:
    """Decode the files that users upload to one ingress replica.

    The methods raise ServiceError for a file that is refused, and when too many files wait.

    Args:
        processes: Number of files that are decoded concurrently.
        timeout_s: Maximum time to decode one file, in seconds. A process that takes longer is killed.
    """

    def __init__(self, *, processes: int, timeout_s: float):
        self._pool = DecodingPool(processes=processes, timeout_s=timeout_s)
        self._waiting, self._max_waiting = 0, _MAX_WAITING_PER_PROCESS * processes

    def check(self) -> None:
        """Raise ServiceError if no file can be decoded at present."""
        if (fault := self._pool.fault) is not None:
            raise broken(f"no file can be decoded: {fault}")

    async def sound(self, audio: Path, *, track: Path, max_seconds: float) -> np.ndarray:
        """Return the samples of a file: float32 [N], mono, 16 kHz. Write `track`, see `DecodingPool.sound`."""
        return await self._run(lambda: self._pool.sound(audio, track=track, max_seconds=max_seconds))

    async def face(self, image: bytes, *, size: int, paste_back: bool) -> FaceCrop:
        """Return the face of a picture, as a square with sides of `size` pixels.

        With `paste_back` the result also holds the whole picture, for pasting the face back into it.
        """
        return await self._run(lambda: self._pool.face(image, size=size, paste_back=paste_back))

    async def _run(self, submit: Callable[[], Future[T]]) -> T:
        if self._waiting >= self._max_waiting:
            raise full(f"{self._waiting} files wait to be decoded, the maximum")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(submit())
        except ProcessLost as error:
            raise broken(f"the file could not be decoded: {error}") from error
        except Exception as error:
            refusal = self._pool.refusal(error)
            # The file did not cause the error.
            if refusal is None:
                raise
            if refusal.code == "too_large":
                raise too_large(str(refusal)) from error
            raise bad_input(str(refusal)) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
