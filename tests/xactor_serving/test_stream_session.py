"""Test a WebSocket session without a server: clients that leave, clients that flood it, and their places."""

import asyncio
import base64
import json
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xactor_serving.arguments import Limits
from xactor_serving.errors import ServiceError
from xactor_serving.generation import SoundBuffer
from xactor_serving.guard import Guard
from xactor_serving.places import Client, Places
from xactor_serving.stream_session import StreamSession

LIMITS = {"max_seconds": 100, "idle_timeout_s": 0.5, "first_message_timeout_s": 0.3, "max_videos": 3}
START = json.dumps({"image": base64.b64encode(b"face").decode()})
END = '{"type": "end"}'


class Socket:
    """Stand in for a client: give its messages, and record the answers."""

    def __init__(self, messages: list[str | bytes], *, admitted: bool = True):
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.scope: dict[str, Any] = {}
        self.state = SimpleNamespace(request_id="r", client=Client("c", admitted))
        self.json: list[dict[str, Any]] = []
        self.closed: int | None = None
        for message in messages:
            self.send(message)

    def send(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        self.messages.put_nowait({"type": "websocket.receive", kind: message})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def accept(self) -> None:
        pass

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()

    async def send_json(self, message: dict[str, Any]) -> None:
        self.json.append(message)

    async def send_bytes(self, data: bytes) -> None:
        pass

    async def close(self, code: int = 1000) -> None:
        self.closed = code


class Slow:
    """Stand in for `Videos`. Finding the face or making the video takes for ever, until it is cancelled."""

    def __init__(self, *, slow: str = "video", **limits):
        self.limits = Limits(**{**LIMITS, **limits})
        self.places = Places(self.limits)
        self.slow, self.begun, self.ended = slow, asyncio.Event(), False
        self.sound = SoundBuffer()

    async def face(self, image: bytes, options) -> SimpleNamespace:
        if self.slow == "face":
            await self._work()
        return SimpleNamespace(notes=())

    async def fragments(self, face, sound: SoundBuffer, track, options):
        self.sound = sound
        await self._work()
        yield b""

    async def _work(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.ended = True


def session(videos: Slow, socket: Socket, keys: tuple[str, ...] = ()) -> asyncio.Task[None]:
    return asyncio.ensure_future(StreamSession(videos, keys, socket).run())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slow", "messages"),
    [
        ("face", []),
        ("face", [bytes(64_000)] * 3),
        ("video", []),
        ("video", [bytes(3200)]),
        # 90 s of sound that nobody has taken.
        ("video", [bytes(32_000)] * 90),
        ("video", [bytes(32_000), END]),
    ],
    ids=[
        "no face yet",
        "no face yet, sound waits",
        "no sound",
        "some sound",
        "much sound waits",
        "after the end",
    ],
)
def test_a_client_that_leaves_is_noticed_at_once(slow, messages):
    async def leave() -> None:
        videos, socket = Slow(slow=slow), Socket([START, *messages])
        running = session(videos, socket)
        await asyncio.wait_for(videos.begun.wait(), 10)
        await asyncio.sleep(0.05)
        assert videos.places.videos == 1
        socket.leave()
        await asyncio.wait_for(running, 5)
        assert videos.ended
        assert videos.places.videos == 0
        assert not any("error" in message for message in socket.json)

    asyncio.run(leave())


async def answer(videos: Slow, socket: Socket, keys: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return the code and the message of the error with which the session ends."""
    await asyncio.wait_for(session(videos, socket, keys), 30)
    error = socket.json[-1]["error"]
    assert socket.closed is not None
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "at least 16 samples on average, got 201 messages with 0 samples"),
        (b"\0\0", "at least 16 samples on average, got 214 messages with 214 samples"),
        (bytes(16), "at least 16 samples on average"),
        ("", "send audio as bytes"),
        ("[" * 900, "send audio as bytes"),
        ('{"type": "end", "x": 1}', "send audio as bytes"),
    ],
    ids=["empty", "one sample", "eight samples", "empty text", "brackets", "another object"],
)
def test_floods_of_small_messages_are_refused(message, says):
    async def flood() -> None:
        begun = time.monotonic()
        code, text = await answer(Slow(idle_timeout_s=60), Socket([START, *[message] * 20_000]))
        assert code == "bad_option"
        assert says in text
        assert time.monotonic() - begun < 5

    asyncio.run(flood())


def test_an_empty_message_does_not_break_the_silence():
    async def trickle() -> None:
        socket = Socket([START])

        async def send() -> None:
            while True:
                socket.send(b"")
                await asyncio.sleep(0.1)

        sending = asyncio.ensure_future(send())
        assert await answer(Slow(), socket) == ("timed_out", "no message arrived for 0.5 s")
        sending.cancel()

    asyncio.run(trickle())


@pytest.mark.parametrize("end", [END, '{"type":"end"}', ' {\n"type" : "\\u0065nd"}\n'])
def test_the_end_message_is_json_and_the_last(end):
    async def finish() -> None:
        videos, socket = Slow(), Socket([START, bytes(6400), end])
        running = session(videos, socket)
        await asyncio.wait_for(videos.begun.wait(), 10)
        # Longer than the idle timeout, which does not count after the end.
        await asyncio.sleep(0.7)
        assert videos.sound.ended
        assert videos.sound.received == 3200
        socket.send(b"\0\0")
        await asyncio.wait_for(running, 5)
        assert "must be the last message" in socket.json[-1]["error"]["message"]

    asyncio.run(finish())


@pytest.mark.parametrize("image", ["é", "\ud800", "a", "a" * 5])
def test_a_picture_that_is_not_base64_is_a_bad_option(image):
    start = json.dumps({"image": image})
    code, message = asyncio.run(answer_of(start))
    assert code == "bad_option"
    assert message.startswith("image: ") or "surrogate" in message or "JSON" in message


async def answer_of(start: str) -> tuple[str, str]:
    return await answer(Slow(), Socket([start]))


# --- places ---------------------------------------------------------------------------------------------------------


def test_sockets_without_a_first_message_hold_no_video_and_are_few():
    async def hold() -> None:
        videos = Slow(max_half_open=8, max_videos_per_key=2)
        strangers = [Socket([], admitted=False) for _ in range(50)]
        begun = time.monotonic()
        running = [session(videos, socket, ("key",)) for socket in strangers]
        await asyncio.sleep(0.1)
        refused = [socket.json[0]["error"]["code"] for socket in strangers if socket.json]
        # A quarter of the half-open connections may come from one address.
        assert refused == ["too_many"] * 48
        # Meanwhile a client with a key makes a video, whether the key is in a header or in the first message.
        for socket in (Socket([START]), Socket([json.dumps({**json.loads(START), "key": "key"})])):
            videos.begun.clear()
            other = session(videos, socket)
            await asyncio.wait_for(videos.begun.wait(), 5)
            other.cancel()
        await asyncio.wait_for(asyncio.gather(*running), 5)
        assert time.monotonic() - begun < 3
        assert [socket.json[-1]["error"]["code"] for socket in strangers].count("timed_out") == 2
        with ExitStack() as free:
            for n in range(8):
                free.enter_context(videos.places.place(Client(f"address {n}", False)))

    asyncio.run(hold())


def test_places_are_counted_by_client_and_in_total():
    places = Places(Limits(max_videos=3, max_videos_per_key=2, max_half_open=4))

    def code(client: Client) -> str | None:
        try:
            with places.place(client) as place:
                place.begin_video()
        except ServiceError as error:
            return error.code
        return None

    with ExitStack() as held:
        a, b, c, d = (Client(name, True) for name in "abcd")
        first = [held.enter_context(places.place(client)) for client in (a, a, b, b)]
        # The client's own maximum comes first. All others find the requests that are arriving.
        assert [code(client) for client in (a, b, c)] == ["too_many", "too_many", "full"]
        assert code(Client("stranger", False)) is None
        for place in first[:3]:
            place.begin_video()
        assert places.videos == 3
        assert code(c) == "full"
        assert code(a) == "too_many"
        with pytest.raises(ServiceError, match="3 videos are in progress"):
            first[3].begin_video()
    assert places.videos == 0
    assert code(d) is None


@pytest.mark.parametrize(("pieces", "ends"), [(3, True), (3, False), (0, False)])
def test_a_refused_upload_is_read_before_the_answer_unless_it_stalls(pieces, ends):
    """Most clients read an answer only after they have sent all, and would report a broken connection otherwise."""
    events: list[str] = []

    async def receive() -> dict[str, Any]:
        if len(events) == pieces:
            await asyncio.sleep(60)
        events.append("piece")
        return {"type": "http.request", "body": b"x", "more_body": not (ends and len(events) == pieces)}

    async def send(message) -> None:
        events.append(str(message.get("status", "body")))

    async def post() -> None:
        places = Places(Limits(max_videos_per_key=1))
        guard = Guard(None, keys=("key",), limits=Limits(), places=places)
        headers = [(b"authorization", b"Bearer key")]
        scope = {"type": "http", "method": "POST", "path": "/v1/videos", "headers": headers}
        with places.place(Client("key key", True)):
            await asyncio.wait_for(guard(scope, receive, send), 5)

    asyncio.run(post())
    assert events == ["piece"] * pieces + ["429", "body"]


# --- buffers --------------------------------------------------------------------------------------------------------


def test_the_sound_buffer_gives_what_was_appended_whatever_the_blocks():
    sound = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    buffer, first = SoundBuffer(), 0
    cuts = np.sort(np.random.default_rng(1).integers(0, 5000, 300))
    for part in np.split(sound, cuts):
        buffer.append(part)
        first = min(max(buffer.received - 700, 0), first + 37)
        last = first + 500
        np.testing.assert_array_equal(buffer.take(first, last), sound[first : min(last, buffer.received)])
    assert buffer.received == 5000


def test_appending_to_the_sound_buffer_costs_the_same_at_any_length():
    """Append half an hour of sound in small blocks, while nobody takes any."""
    buffer, block = SoundBuffer(), np.zeros(320, np.float32)
    begun = time.process_time()
    for _ in range(90_000):
        buffer.append(block)
    # A copy of the whole buffer for each block would take an hour.
    assert time.process_time() - begun < 5
