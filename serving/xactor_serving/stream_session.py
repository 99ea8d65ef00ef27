"""Serve one WebSocket connection: receive audio while it is spoken, and send video while it is made."""

import asyncio
import base64
import json
import logging
import time
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

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
from xactor_serving.metrics import count_error, metrics
from xactor_serving.places import Client, Place
from xactor_serving.video_options import StreamStart
from xactor_serving.videos import Videos

_log = logging.getLogger("ray.serve")
# Messages of audio hold at least this many samples on average, after a number of messages that may hold any. Each
# message costs time, however small it is.
_MIN_MEAN_SAMPLES, _FREE_MESSAGES = 16, 200
# Audio is passed on in blocks of at least this many samples, 20 ms, because each block takes memory of its own.
_BLOCK_SAMPLES = SAMPLE_RATE_HZ // 50
# Maximum length of the JSON messages after the first one.
_MAX_TEXT = 1000
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
        # Audio that is not passed on yet, PCM16.
        self._heard = bytearray()

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
        """Receive the first message and make the video, both in a place of the client."""
        client, places = self._socket.state.client, self._videos.places
        with places.place(client) as place:
            start = await self._receive_start(client)
            if client.admitted:
                await self._make(place, start, request_id)
                return
        # The key was in the message. Until now the client was known by its address only.
        with places.place(Client.of(self._socket.scope, start.key, admitted=True)) as place:
            await self._make(place, start, request_id)

    async def _make(self, place: Place, start: StreamStart, request_id: str) -> None:
        """Receive audio and send video concurrently, until the video is complete, the client leaves, or one fails."""
        place.begin_video()
        # Raise for options out of range before the picture is decoded.
        start.configs()
        try:
            image = base64.b64decode(start.image, validate=True)
        # Characters beyond ASCII raise a ValueError that is no binascii.Error.
        except ValueError as error:
            raise bad_option(f"image: not base64 ({error})") from error
        # Receiving never ends by itself, so that a client that leaves is noticed in every state.
        receiving = asyncio.create_task(self._receive_audio())
        sending = asyncio.create_task(self._send_video(image, start, request_id))
        try:
            await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_COMPLETED)
            await (sending if sending.done() else receiving)
        finally:
            for task in (receiving, sending):
                task.cancel()
            await asyncio.gather(receiving, sending, return_exceptions=True)

    async def _receive_start(self, client: Client) -> StreamStart:
        """Receive the first message, check its API key and return it."""
        timeout_s = self._videos.limits.first_message_timeout_s
        message = await self._next_message(time.monotonic() + timeout_s, f"within {timeout_s:g} s")
        text = message.get("text")
        if text is None:
            raise bad_option("the first message must be JSON with the portrait, got bytes")
        try:
            start = StreamStart.model_validate_json(text)
        except ValidationError as error:
            raise bad_option(validation_line(error.errors(), StreamStart.model_fields)) from error
        if not client.admitted and not is_known(self._keys, start.key):
            raise bad_key()
        return start

    async def _receive_audio(self) -> None:
        """Receive messages until the client leaves, and pass audio to the motion model and the audio track.

        Raises:
            ServiceError: The audio is too long or too short, a message is neither audio nor the end message, or the
                client is silent for too long before the end message.
            WebSocketDisconnect: The client has left.
        """
        idle_timeout_s = self._videos.limits.idle_timeout_s
        heard_at, messages, samples = time.monotonic(), 0, 0
        while True:
            silent_until = None if self._sound.ended else heard_at + idle_timeout_s
            message = await self._next_message(silent_until, f"for {idle_timeout_s:g} s")
            # Let other tasks run, even if the client floods this one.
            await asyncio.sleep(0)
            data = message.get("bytes")
            if self._sound.ended:
                raise bad_option('{"type": "end"} must be the last message')
            if data is None:
                if not _is_end(message.get("text") or ""):
                    raise bad_option('after the first message, send audio as bytes and then {"type": "end"}')
                self._pass_on()
                if frame_count(self._sound.received) < 1:
                    raise bad_input(f"{self._sound.received} samples of audio are too short")
                self._sound.end()
                continue
            messages, samples = messages + 1, samples + len(data) // 2
            # An empty message does not break the silence.
            if data:
                heard_at = time.monotonic()
            self._check_audio(len(data), messages, samples)
            self._heard += data
            if len(self._heard) >= 2 * _BLOCK_SAMPLES:
                self._pass_on()

    def _check_audio(self, size: int, messages: int, samples: int) -> None:
        """Raise ServiceError if an audio message or all of them together are out of bounds.

        Args:
            size: Bytes of the message.
            messages: Number of audio messages up to this one.
            samples: Number of their samples.
        """
        max_seconds = self._videos.limits.max_seconds
        if size % 2:
            raise bad_option(f"audio must be PCM16, two bytes a sample, got {size} bytes")
        if samples > max_seconds * SAMPLE_RATE_HZ:
            raise too_large(f"the audio may last at most {max_seconds:g} s")
        if messages > _FREE_MESSAGES + samples // _MIN_MEAN_SAMPLES:
            raise bad_option(
                f"messages of audio must hold at least {_MIN_MEAN_SAMPLES} samples on average, "
                f"got {messages} messages with {samples} samples"
            )

    def _pass_on(self) -> None:
        """Pass the audio that has arrived to the motion model and the audio track."""
        # Scale 16-bit samples to [-1, 1).
        samples = np.frombuffer(self._heard, "<i2").astype(np.float32) / 32768
        self._heard = bytearray()
        self._track.hear(samples)
        self._sound.append(samples)

    async def _send_video(self, image: bytes, start: StreamStart, request_id: str) -> None:
        """Send the start message, the fragments as they are made, then the end message, and close the socket."""
        face = asyncio.create_task(self._videos.face(image, start))
        try:
            notes = list((await face).notes)
            await self._socket.send_json({"type": "start", "request_id": request_id, "notes": notes})
            begun, is_first = time.monotonic(), True
            async with aclosing(self._videos.fragments(face, self._sound, self._track, start)) as fragments:
                async for data in fragments:
                    if is_first:
                        metrics().first_fragment_s.observe(time.monotonic() - begun)
                        is_first = False
                    await self._socket.send_bytes(data)
        finally:
            face.cancel()
        await self._socket.send_json({"type": "end", "frames": frame_count(self._sound.received)})
        await self._socket.close()

    async def _next_message(self, until: float | None, says: str) -> dict[str, Any]:
        """Receive the next message.

        Args:
            until: Time on the monotonic clock at which the client has been silent for too long; None means never.
            says: Description of this time, for the error.

        Raises:
            ServiceError: The client is silent for too long.
            WebSocketDisconnect: The client has left.
        """
        try:
            async with asyncio.timeout(None if until is None else max(until - time.monotonic(), 0)):
                message = await self._socket.receive()
        except TimeoutError as error:
            raise timed_out(f"no message arrived {says}") from error
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


def _is_end(text: str) -> bool:
    """Return whether a message is the JSON object {"type": "end"}, however it is written."""
    try:
        return len(text) <= _MAX_TEXT and json.loads(text) == {"type": "end"}
    # Deeply nested JSON raises a RecursionError.
    except (ValueError, RecursionError):
        return False
