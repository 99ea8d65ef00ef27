"""Serve one WebSocket connection: receive audio while it is spoken, and send video while it is made."""

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

from xactor.decoding import FaceCrop
from xactor.media import LiveSound
from xactor.rates import SAMPLE_RATE_HZ, frame_count
from xactor_serving.errors import (
    ServiceError,
    bad_input,
    bad_key,
    bad_option,
    failed,
    timed_out,
    too_large,
    validation_line,
)
from xactor_serving.generation import SoundBuffer
from xactor_serving.guard import is_known
from xactor_serving.metrics import metrics
from xactor_serving.video_options import StreamStart
from xactor_serving.videos import Videos, count_error

_log = logging.getLogger("ray.serve")
# Maximum audio that waits for the motion model, in samples: 60 s. If more audio waits, the service stops reading from
# the socket, so that the client must wait.
_MAX_AHEAD_SAMPLES = 60 * SAMPLE_RATE_HZ
# Close codes of the WebSocket protocol.
_CLOSE_REFUSED, _CLOSE_FAILED = 1008, 1011


class StreamSession:
    """Serve one WebSocket connection, see docs/websocket.md.

    The client sends the fields of `StreamStart` as JSON, then audio as bytes (PCM16 little endian, 16 kHz, mono), then
    JSON {"type": "end"}. The service sends JSON {"type": "start", "request_id", "notes"}, then video as bytes, then
    JSON {"type": "end", "frames"}. After an error the service sends {"error": {...}} and closes the socket.

    Args:
        videos: Makes the video.
        keys: Accepted API keys; empty if none is needed.
        socket: The connection.
    """

    def __init__(self, videos: Videos, keys: tuple[str, ...], socket: WebSocket):
        self._videos, self._keys, self._socket = videos, keys, socket
        # Both get the same audio: `_sound` for the motion model, `_track` for the video's audio track.
        self._sound, self._track = SoundBuffer(), LiveSound()

    async def run(self) -> None:
        """Serve the connection until it closes."""
        await self._socket.accept()
        request_id = self._socket.state.request_id
        try:
            await self._serve(request_id)
        except WebSocketDisconnect:
            pass
        except ServiceError as error:
            await self._refuse(count_error(error), request_id)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            await self._refuse(count_error(failed(type(error).__name__)), request_id)

    async def _serve(self, request_id: str) -> None:
        """Receive the first message. Then receive audio and send video concurrently, until one fails or both end."""
        start = await self._receive_start()
        with self._videos.slot(start.key):
            # Raise for options out of range before the picture is decoded.
            start.configs()
            try:
                image = base64.b64decode(start.image, validate=True)
            except binascii.Error as error:
                raise bad_option(f"image: not base64 ({error})") from error
            face = asyncio.create_task(self._videos.face(image, start))
            hello = {"type": "start", "request_id": request_id, "notes": list((await face).notes)}
            await self._socket.send_json(hello)
            receiving = asyncio.create_task(self._receive_audio())
            sending = asyncio.create_task(self._send_video(face, start))
            try:
                await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_EXCEPTION)
                # If a task has failed, awaiting it raises its error. If none has failed, both are done.
                for task in (receiving, sending):
                    if task.done():
                        await task
                await sending
            finally:
                for task in (receiving, sending):
                    task.cancel()
                await asyncio.gather(receiving, sending, return_exceptions=True)

    async def _receive_start(self) -> StreamStart:
        """Receive the first message, check its API key and return it."""
        message = await self._next_message()
        text = message.get("text")
        if text is None:
            raise bad_option("the first message must be JSON with the portrait, got bytes")
        try:
            start = StreamStart.model_validate_json(text)
        except ValidationError as error:
            raise bad_option(validation_line(error.errors())) from error
        if not is_known(self._keys, start.key):
            raise bad_key()
        return start

    async def _receive_audio(self) -> None:
        """Receive audio until the client's end message, and pass it to the motion model and the audio track.

        Raises:
            ServiceError: The audio is too long or too short, or a message is neither audio nor the end message.
        """
        max_samples = int(self._videos.limits.max_seconds * SAMPLE_RATE_HZ)
        while True:
            await self._sound.wait_for_space(_MAX_AHEAD_SAMPLES)
            message = await self._next_message()
            if (data := message.get("bytes")) is not None:
                if len(data) % 2:
                    raise bad_option(f"audio must be PCM16, two bytes a sample, got {len(data)} bytes")
                # Scale 16-bit samples to [-1, 1).
                samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
                if self._sound.received + len(samples) > max_samples:
                    raise too_large(f"the audio may last at most {self._videos.limits.max_seconds:g} s")
                self._track.hear(samples)
                self._sound.append(samples)
            elif (message.get("text") or "").replace(" ", "") == '{"type":"end"}':
                break
            else:
                raise bad_option('after the first message, send audio as bytes and then {"type": "end"}')
        if frame_count(self._sound.received) < 1:
            raise bad_input(f"{self._sound.received} samples of audio are too short")
        self._sound.end()

    async def _send_video(self, face: asyncio.Future[FaceCrop], start: StreamStart) -> None:
        """Send the fragments as they are made, then the end message, and close the socket."""
        begun, is_first = time.monotonic(), True
        fragments = self._videos.fragments(face, self._sound, self._track, start)
        async with aclosing(fragments):
            async for data in fragments:
                if is_first:
                    metrics().first_fragment_s.observe(time.monotonic() - begun)
                    is_first = False
                await self._socket.send_bytes(data)
        await self._socket.send_json({"type": "end", "frames": frame_count(self._sound.received)})
        await self._socket.close()

    async def _next_message(self) -> dict[str, Any]:
        """Receive the next message. Raise if the client disconnects or stays silent for too long."""
        idle_timeout_s = self._videos.limits.idle_timeout_s
        try:
            async with asyncio.timeout(idle_timeout_s):
                message = await self._socket.receive()
        except TimeoutError as error:
            raise timed_out(f"no message arrived for {idle_timeout_s:g} s") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return dict(message)

    async def _refuse(self, error: ServiceError, request_id: str) -> None:
        """Send an error and close the socket."""
        try:
            await self._socket.send_json(error.body(request_id))
            await self._socket.close(_CLOSE_FAILED if error.status >= 500 else _CLOSE_REFUSED)
        except (RuntimeError, WebSocketDisconnect):
            # The client has left.
            pass
