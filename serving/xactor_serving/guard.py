"""What stands before every request: its id, its key, how large and how slow it may be."""

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

_OPEN_PATHS = ("/", "/healthz")  # without a key
# Of all of a request's; servers under Serve's proxy differ in what they let through.
_MAX_HEADER_BYTES = 64 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def knows(keys: tuple[str, ...], given: str) -> bool:
    """Whether a key is one of those, in time that tells nothing of them. Without keys everyone is known."""
    found = [hmac.compare_digest(key.encode(), given.encode()) for key in keys]
    return not keys or any(found)


class Guard:
    """An ASGI middleware.

    Args:
        keys: that are accepted; none means that none is needed.
        max_body_bytes: of an upload. upload_s: how long it may take to arrive.
    """

    def __init__(self, app, *, keys: tuple[str, ...], max_body_bytes: int, upload_s: float):
        self._app, self._keys = app, keys
        self._max_body_bytes, self._upload_s = max_body_bytes, upload_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        given = headers.get(
            "x-request-id", ""
        )  # Serve's proxy gives one to every request, and answers with it
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        header_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if scope["type"] == "websocket":  # says its key in its first message
            if header_bytes > _MAX_HEADER_BYTES:
                await send({"type": "websocket.close"})
                return
            await self._app(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            if header_bytes > _MAX_HEADER_BYTES:
                raise too_large(f"a request's headers may hold {_MAX_HEADER_BYTES >> 10} KiB at most")
            scope["state"]["key"] = self._check(
                scope["path"].removeprefix(scope.get("root_path", "")), headers
            )
            await self._app(scope, self._bounded(receive), answer)
        except ServiceError as error:
            if begun:  # the connection ends without a final chunk
                raise
            await answer_error(error, request_id, send)

    def _check(self, path: str, headers: dict[str, str]) -> str:
        """The key that a request has."""
        key = headers.get("authorization", "")
        key = key[7:].strip() if key[:7].lower() == "bearer " else ""
        if path not in _OPEN_PATHS and not knows(self._keys, key):
            raise bad_key()
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            raise self._too_large()
        return key

    def _bounded(self, receive: Receive) -> Receive:
        """The request's body, counted and within its time."""
        taken, ended = 0, False
        deadline = asyncio.get_running_loop().time() + self._upload_s

        async def bounded() -> Message:
            nonlocal taken, ended
            try:
                async with asyncio.timeout_at(None if ended else deadline):
                    message = await receive()
            except TimeoutError as error:
                raise timed_out(f"the upload took longer than {self._upload_s:g} s") from error
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                ended = not message.get("more_body", False)
                if taken > self._max_body_bytes:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ServiceError:
        return too_large(f"a request may hold {self._max_body_bytes / 2**20:.0f} MiB at most")


async def answer_error(error: ServiceError, request_id: str, send: Send) -> None:
    body = json.dumps(error.body(request_id)).encode()
    headers = {"content-type": "application/json", "connection": "close"}
    headers |= {name.lower(): value for name, value in error.headers().items()}
    start = {"type": "http.response.start", "status": error.status}
    start["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
