"""The WebSocket: sound as it is spoken, video as it is made."""

import asyncio
import base64
import binascii
import logging
import time
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from xactor.decoding import Face
from xactor.media import LiveSound
from xactor.rates import SAMPLE_RATE_HZ, frame_count
from xactor_serving.errors import ServiceError, bad_input, bad_key, bad_option, timed_out, too_large
from xactor_serving.guard import knows
from xactor_serving.metrics import metrics
from xactor_serving.options import StreamStart, validation_line
from xactor_serving.performance import HeardSound
from xactor_serving.videos import Videos, counted

_log = logging.getLogger("ray.serve")
_KEPT_SOUND = 60 * SAMPLE_RATE_HZ  # samples that may be ahead of the video
_CLOSE_REFUSED, _CLOSE_FAILED = 1008, 1011  # WebSocket's codes


class Conversation:
    """One WebSocket: the portrait and options, then sound as it is spoken; fragments of video back.

    Messages in: JSON of `StreamStart`; bytes, PCM16 little endian, 16 kHz, mono; JSON {"type": "end"}.
    Messages out: JSON {"type": "start", "request_id", "notes"}; bytes; JSON {"type": "end", "frames"}.
    Or {"error": …}, and the socket closes.
    """

    def __init__(self, videos: Videos, keys: tuple[str, ...], socket: WebSocket):
        self._videos, self._keys, self._socket = videos, keys, socket
        self._sound, self._track = HeardSound(), LiveSound()

    async def hold(self) -> None:
        await self._socket.accept()
        request_id = self._socket.state.request_id
        try:
            await self._talk(request_id)
        except WebSocketDisconnect:
            pass
        except ServiceError as error:
            await self._refuse(counted(error), request_id)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            failed = ServiceError(500, "failed", f"{type(error).__name__}")
            await self._refuse(counted(failed), request_id)

    async def _talk(self, request_id: str) -> None:
        start = await self._start()
        with self._videos.place(start.key):
            start.configs()
            try:
                image = base64.b64decode(start.image, validate=True)
            except binascii.Error as error:
                raise bad_option(f"image: not base64 ({error})") from error
            face = asyncio.create_task(self._videos.face(image, start))
            hello = {"type": "start", "request_id": request_id, "notes": list((await face).notes)}
            await self._socket.send_json(hello)
            listening = asyncio.create_task(self._listen())
            telling = asyncio.create_task(self._tell(face, start))
            try:
                await asyncio.wait((listening, telling), return_when=asyncio.FIRST_EXCEPTION)
                for task in (listening, telling):
                    if task.done():
                        await task
                await telling
            finally:
                for task in (listening, telling):
                    task.cancel()
                await asyncio.gather(listening, telling, return_exceptions=True)

    async def _start(self) -> StreamStart:
        message = await self._next()
        text = message.get("text")
        if text is None:
            raise bad_option("the first message must be JSON with the portrait, got bytes")
        try:
            start = StreamStart.model_validate_json(text)
        except ValidationError as error:
            raise bad_option(validation_line(error.errors())) from error
        if not knows(self._keys, start.key):
            raise bad_key()
        return start

    async def _listen(self) -> None:
        """Sound, until its end."""
        most = int(self._videos.limits.max_seconds * SAMPLE_RATE_HZ)
        while True:
            await self._sound.room(_KEPT_SOUND)
            message = await self._next()
            if (data := message.get("bytes")) is not None:
                if len(data) % 2:
                    raise bad_option(f"sound must be PCM16, two bytes a sample, got {len(data)} bytes")
                samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
                if self._sound.heard + len(samples) > most:
                    raise too_large(f"the sound may last {self._videos.limits.max_seconds:g} s at most")
                self._track.hear(samples)
                self._sound.hear(samples)
            elif (message.get("text") or "").replace(" ", "") == '{"type":"end"}':
                break
            else:
                raise bad_option('after the first message come sound as bytes and then {"type": "end"}')
        if frame_count(self._sound.heard) < 1:
            raise bad_input(f"{self._sound.heard} samples of sound are too short")
        self._sound.end()

    async def _tell(self, face: asyncio.Future[Face], start: StreamStart) -> None:
        begun, first = time.monotonic(), True
        fragments = self._videos.fragments(face, self._sound, self._track, start)
        async with aclosing(fragments):
            async for data in fragments:
                if first:
                    metrics().first_s.observe(time.monotonic() - begun)
                    first = False
                await self._socket.send_bytes(data)
        await self._socket.send_json({"type": "end", "frames": frame_count(self._sound.heard)})
        await self._socket.close()

    async def _next(self) -> dict[str, Any]:
        silence_s = self._videos.limits.silence_s
        try:
            async with asyncio.timeout(silence_s):
                message = await self._socket.receive()
        except TimeoutError as error:
            raise timed_out(f"nothing was heard for {silence_s:g} s") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return dict(message)

    async def _refuse(self, error: ServiceError, request_id: str) -> None:
        try:
            await self._socket.send_json(error.body(request_id))
            await self._socket.close(_CLOSE_FAILED if error.status >= 500 else _CLOSE_REFUSED)
        except (RuntimeError, WebSocketDisconnect):
            pass  # it is gone already
