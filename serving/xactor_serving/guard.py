"""Give every request an id, check its API key, take its client's place, and bound its size and upload time.

All this happens before the application reads the request.
"""

import asyncio
import contextlib
import hmac
import json
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from xactor_serving.arguments import Limits
from xactor_serving.errors import ServiceError, bad_key, timed_out, too_large
from xactor_serving.metrics import count_error
from xactor_serving.places import Client, Places

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Paths that need no key. The files below /examples/, which the page at `/` offers, need none either.
_OPEN_PATHS = ("/", "/healthz")
# Method and path of the requests that make videos. They take a place of their client.
_MAKES_VIDEO = ("POST", "/v1/videos")
# Maximum bytes of all headers of a request, checked here because Serve's HTTP servers have different bounds.
_MAX_HEADER_BYTES = 64 << 10
# The body of a refused request is read for this many seconds, and while no more than this many pass without a piece.
_DISCARD_S, _DISCARD_IDLE_S = 5, 0.5
# Maximum digits of a length, because Python refuses to convert very long numbers.
_MAX_DIGITS = 18
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_known(keys: tuple[str, ...], key: str) -> bool:
    """Return whether a key is accepted. If `keys` is empty, every key is accepted.

    The comparison takes constant time, so that its duration tells an attacker nothing about the accepted keys.
    """
    matches = [hmac.compare_digest(accepted.encode(), key.encode("utf-8", "replace")) for accepted in keys]
    return not keys or any(matches)


class Guard:
    """Wrap an ASGI application, and refuse requests with a wrong key or with headers or a body beyond the limits.

    Args:
        app: The application.
        keys: Accepted API keys; empty if none is needed.
        limits: Limits of the body's size and time.
        places: Places of the clients.
    """

    def __init__(self, app, *, keys: tuple[str, ...], limits: Limits, places: Places):
        self._app, self._keys, self._limits, self._places = app, keys, limits, places

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        # Serve's proxy gives every request an id, and puts the same id into the headers of the answer.
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        header_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        # A key in the headers is accepted at once. A WebSocket client may send its key in its first message instead,
        # which the application checks.
        key = _bearer(headers)
        admitted = is_known(self._keys, key)
        client = Client.of(scope, key if self._keys and admitted else "", admitted=admitted)
        state["client"] = client
        if scope["type"] == "websocket":
            if header_bytes > _MAX_HEADER_BYTES or (key and not admitted):
                await send({"type": "websocket.close"})
                return
            await self._app(scope, receive, send)
            return
        answer_begun, is_head = False, scope["method"] == "HEAD"
        if is_head:
            # The application answers HEAD as GET.
            scope = {**scope, "method": "GET"}

        async def tracked_send(message: Message) -> None:
            nonlocal answer_begun
            answer_begun = answer_begun or message["type"] == "http.response.start"
            await send({**message, "body": b""} if is_head and "body" in message else message)

        try:
            if header_bytes > _MAX_HEADER_BYTES:
                raise too_large(f"a request's headers may hold at most {_MAX_HEADER_BYTES >> 10} KiB")
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            self._check(path, headers, client)
            with contextlib.ExitStack() as stack:
                if (scope["method"], path) == _MAKES_VIDEO:
                    try:
                        state["place"] = stack.enter_context(self._places.place(client))
                    except ServiceError:
                        await _discard(receive)
                        raise
                await self._app(scope, self._bounded(receive), tracked_send)
        except ServiceError as error:
            # An answer that has begun cannot become an error answer. So the error is raised, and the server ends the
            # connection without a final chunk, which clients report as an incomplete read.
            if answer_begun:
                raise
            await answer_error(count_error(error), request_id, tracked_send)

    def _check(self, path: str, headers: dict[str, str], client: Client) -> None:
        """Check the client and the declared size of the body.

        Raises:
            ServiceError: The path needs a key and the client has shown none, or the body's declared length is too
                large.
        """
        is_open = path in _OPEN_PATHS or path.startswith("/examples/")
        if not is_open and not client.admitted:
            raise bad_key()
        declared = headers.get("content-length", "0")
        # Some characters, such as superscripts, are digits to Python and no numbers.
        if (
            not declared.isdecimal()
            or len(declared) > _MAX_DIGITS
            or int(declared) > self._limits.max_upload_bytes
        ):
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that bounds the body's size, its upload time and the silences in it."""
        received, ended = 0, False
        clock, limits = asyncio.get_running_loop(), self._limits
        deadline = clock.time() + limits.upload_timeout_s

        async def bounded() -> Message:
            nonlocal received, ended
            silent_until = clock.time() + limits.idle_timeout_s
            try:
                async with asyncio.timeout_at(None if ended else min(deadline, silent_until)):
                    message = await receive()
            except TimeoutError as error:
                if deadline <= silent_until:
                    raise timed_out(f"the upload took longer than {limits.upload_timeout_s:g} s") from error
                raise timed_out(f"nothing of the upload arrived for {limits.idle_timeout_s:g} s") from error
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                ended = not message.get("more_body", False)
                if received > limits.max_upload_bytes:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ServiceError:
        return too_large(f"a request may hold at most {self._limits.max_upload_bytes / 2**20:.0f} MiB")


async def _discard(receive: Receive) -> None:
    """Read the body of a refused request for a while, because most clients read no answer before they have sent all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            is_more = True
            while is_more:
                async with asyncio.timeout(_DISCARD_IDLE_S):
                    is_more = (await receive()).get("more_body", False)


def _bearer(headers: dict[str, str]) -> str:
    """Return the key in the headers of a request, empty if there is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def answer_error(error: ServiceError, request_id: str, send: Send) -> None:
    """Send an error as the whole answer."""
    body = json.dumps(error.body(request_id)).encode()
    headers = {"content-type": "application/json", "connection": "close"}
    headers |= {name.lower(): value for name, value in error.headers().items()}
    start = {"type": "http.response.start", "status": error.status}
    start["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
