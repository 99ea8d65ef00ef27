"""A request's files, decoded away from the event loop, and not too many at a time."""

import asyncio
from pathlib import Path

from serving.errors import bad_input, full, too_large
from xactor.decoding import Decoded, DecodingPool


class Decoder:
    """For one ingress.

    Args:
        processes: how many requests are decoded at a time. timeout_s: of one; what takes longer is killed.
    """

    def __init__(self, *, processes: int, timeout_s: float):
        self._pool = DecodingPool(processes=processes, timeout_s=timeout_s)
        self._waiting, self._most = 0, 4 * processes

    async def decode(
        self, image: bytes | Path, audio: Path | None, *, size: int, max_seconds: float, paste_back: bool
    ) -> Decoded:
        """ServiceError: files that are refused, or a queue that is full."""
        if self._waiting >= self._most:
            raise full(f"{self._waiting} uploads wait to be decoded, no more may")
        self._waiting += 1
        try:
            future = self._pool.submit(
                image, audio, size=size, max_seconds=max_seconds, paste_back=paste_back
            )
            return await asyncio.wrap_future(future)
        except Exception as error:
            refusal = self._pool.refusal(error)
            if refusal is None:
                raise
            raise (too_large if refusal.code == "too_large" else bad_input)(str(refusal)) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._pool.close()
