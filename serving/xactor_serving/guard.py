"""Give every request an id, check its API key, and bound its size and upload time, before the application reads it."""

import asyncio
import hmac
import json
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from xactor_serving.errors import ServiceError, bad_key, timed_out, too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Paths that need no key. The files below /examples/, which the page at `/` offers, need none either.
_OPEN_PATHS = ("/", "/healthz")
# Maximum bytes of all headers of a request, checked here because Serve's HTTP servers have different bounds.
_MAX_HEADER_BYTES = 64 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_known(keys: tuple[str, ...], key: str) -> bool:
    """Return whether a key is accepted. If `keys` is empty, every key is accepted.

    The comparison takes constant time, so that its duration tells an attacker nothing about the accepted keys.
    """
    matches = [hmac.compare_digest(accepted.encode(), key.encode()) for accepted in keys]
    return not keys or any(matches)


class Guard:
    """Wrap an ASGI application, and refuse requests with a wrong key or with headers or a body beyond the limits.

    Args:
        app: The application.
        keys: Accepted API keys; empty if none is needed.
        max_body_bytes: Maximum size of a request's body.
        upload_timeout_s: Seconds within which a request's whole body must arrive.
    """

    def __init__(self, app, *, keys: tuple[str, ...], max_body_bytes: int, upload_timeout_s: float):
        self._app, self._keys = app, keys
        self._max_body_bytes, self._upload_timeout_s = max_body_bytes, upload_timeout_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        # Serve's proxy gives every request an id, and puts the same id into the headers of the answer.
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        header_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        # A WebSocket client sends its key in its first message, which the application checks.
        if scope["type"] == "websocket":
            if header_bytes > _MAX_HEADER_BYTES:
                await send({"type": "websocket.close"})
                return
            await self._app(scope, receive, send)
            return
        answer_begun = False

        async def tracked_send(message: Message) -> None:
            nonlocal answer_begun
            answer_begun = answer_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            if header_bytes > _MAX_HEADER_BYTES:
                raise too_large(f"a request's headers may hold at most {_MAX_HEADER_BYTES >> 10} KiB")
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            scope["state"]["key"] = self._check(path, headers)
            await self._app(scope, self._bounded(receive), tracked_send)
        except ServiceError as error:
            # An answer that has begun cannot become an error answer. So the error is raised, and the server ends the
            # connection without a final chunk, which clients report as an incomplete read.
            if answer_begun:
                raise
            await answer_error(error, request_id, send)

    def _check(self, path: str, headers: dict[str, str]) -> str:
        """Return the request's key, empty if it has none.

        Raises:
            ServiceError: The path needs a key and the request's key is not accepted, or the body's declared length is
                too large.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        is_open = path in _OPEN_PATHS or path.startswith("/examples/")
        if not is_open and not is_known(self._keys, key):
            raise bad_key()
        declared = headers.get("content-length", "0")
        # Some characters, such as superscripts, are digits to Python and no numbers.
        if not declared.isdecimal() or int(declared) > self._max_body_bytes:
            raise self._too_large()
        return key

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that bounds the body's size and upload time."""
        received, ended = 0, False
        deadline = asyncio.get_running_loop().time() + self._upload_timeout_s

        async def bounded() -> Message:
            nonlocal received, ended
            try:
                async with asyncio.timeout_at(None if ended else deadline):
                    message = await receive()
            except TimeoutError as error:
                raise timed_out(f"the upload took longer than {self._upload_timeout_s:g} s") from error
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                ended = not message.get("more_body", False)
                if received > self._max_body_bytes:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ServiceError:
        return too_large(f"a request may hold at most {self._max_body_bytes / 2**20:.0f} MiB")


async def answer_error(error: ServiceError, request_id: str, send: Send) -> None:
    """Send an error as the whole answer."""
    body = json.dumps(error.body(request_id)).encode()
    headers = {"content-type": "application/json", "connection": "close"}
    headers |= {name.lower(): value for name, value in error.headers().items()}
    start = {"type": "http.response.start", "status": error.status}
    start["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
