"""Test the service over HTTP and WebSocket: all answers have equal frames, and all errors have the same format."""

import asyncio
import base64
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import requests
import websockets
from client import FAST, Service, frames, speech, wav
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.cluster


def check_error(answer: requests.Response, status: int, code: str) -> str:
    """Check that an answer is the given error in the documented format, and return the error's message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "\n" not in error["message"]
    return error["message"]


def test_streamed_and_plain_answers_have_equal_frames(service, face, tmp_path):
    sound = wav(1.9, 44_100)
    streamed = service.post(image=face, audio=sound, **FAST)
    plain = service.post(image=face, audio=sound, **FAST, stream="false")
    for answer in (streamed, plain):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "video/mp4"
    one, other = frames(streamed.content, tmp_path), frames(plain.content, tmp_path)
    assert len(one) == round(1.9 * 25)
    np.testing.assert_array_equal(np.stack(one), np.stack(other))
    path = tmp_path / "video.mp4"
    for answer in (streamed, plain):
        path.write_bytes(answer.content)
        with av.open(str(path)) as made:
            assert made.streams.video[0].codec_context.name == "h264"
            assert made.streams.video[0].codec_context.pix_fmt == "yuv420p"
            assert made.streams.audio[0].codec_context.name == "aac"
            assert abs(made.duration / 1e6 - 1.9) < 0.1
            assert json.loads(made.metadata["comment"])["ai_generated"] is True
    assert plain.content.find(b"moov") < plain.content.find(b"mdat")


def test_paste_back_returns_the_whole_picture(service, face, tmp_path):
    answer = service.post(image=face, audio=wav(0.4), paste_back="true", **FAST)
    assert frames(answer.content, tmp_path)[0].shape == (256, 256, 3)


def test_first_fragment_arrives_long_before_the_last(service, face):
    started = time.monotonic()
    answer = service.post(image=face, audio=wav(6), stream_response=True, **FAST)
    first_s, last_s, size = None, 0.0, 0
    for data in answer.iter_content(None):
        last_s = time.monotonic() - started
        first_s = first_s or last_s
        size += len(data)
    assert first_s is not None
    assert first_s < 0.6 * last_s


def test_bad_fields_are_refused(service, face):
    sound = wav(0.4)
    assert check_error(service.post(image=b"no picture", audio=sound), 400, "bad_input").startswith("image: ")
    assert check_error(service.post(image=face, audio=b"no sound"), 400, "bad_input").startswith("audio: ")
    assert "20 s" in check_error(service.post(image=face, audio=wav(21)), 413, "too_large")
    assert "audio" in check_error(service.post(image=face), 422, "bad_option")
    assert "image" in check_error(service.post(audio=sound), 422, "bad_option")
    assert "image" in check_error(service.post(image="text", audio=sound), 422, "bad_option")
    for name, value in {
        "motion_steps": "0",
        "render_steps": "many",
        "audio_cfg": "nan",
        "render_cfg": "-1",
        "seed": "-1",
        "history": "none",
        "paste_back": "perhaps",
        "surprise": "1",
    }.items():
        message = check_error(service.post(image=face, audio=sound, **{name: value}), 422, "bad_option")
        assert message.startswith(f"{name}: ")
        valid = {"history": "'linear', 'vanilla' or 'fractional'", "paste_back": "true or false"}
        assert valid.get(name, "") in message
    assert "there are seed, quality, motion_steps" in message


def test_bad_forms_are_refused(service, face):
    url = f"{service.url}/v1/videos"
    assert "application/json" in check_error(requests.post(url, json={}, timeout=60), 415, "wrong_type")
    assert "no content type" in check_error(requests.post(url, timeout=60), 415, "wrong_type")
    doubled = [("image", face), ("audio", wav(0.4)), ("audio", wav(0.4))]
    message = check_error(requests.post(url, files=doubled, timeout=60), 422, "bad_option")
    assert message == "audio: given more than once"
    broken = requests.post(
        url, data=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}, timeout=60
    )
    assert "image: Field required" in check_error(broken, 422, "bad_option")
    huge = begin_upload(service, 10**12)
    assert huge.startswith("HTTP/1.1 413")
    assert "a request may hold at most 256 MiB" in huge


def test_unknown_paths_and_methods_are_refused(service):
    check_error(service.get("/v2"), 404, "not_found")
    check_error(service.get("/v1/videos"), 405, "wrong_method")


def begin_upload(service: Service, size: int, key: str = "") -> str:
    """Send only the beginning of a form of `size` bytes, and return the answer."""
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        head = f"POST {parts.path}/v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        head += f"Authorization: Bearer {key}\r\n" if key else ""
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        connection.sendall(head.encode())
        answer = b""
        while b"}}" not in answer and (piece := connection.recv(65536)):
            answer += piece
        return answer.decode()


def test_stalled_upload_times_out(service):
    answer = begin_upload(service, 1000)
    assert answer.startswith("HTTP/1.1 504")
    assert "the upload took longer than 5 s" in answer


@pytest.mark.parametrize(
    "clients", [12, pytest.param(400, marks=pytest.mark.soak)], ids=["12 clients", "400 clients"]
)
def test_disconnected_clients_free_their_slots(service, face, clients):
    """Let clients disconnect before or after the first bytes of the answer. Then every slot is free again."""

    def leave(number: int) -> None:
        try:
            # Connect within 10 s. Every second client leaves if the answer does not begin within 50 ms.
            timeout = (10, 0.05 if number % 2 else 60)
            answer = requests.post(
                f"{service.url}/v1/videos",
                files={"image": face, "audio": wav(15)},
                data=FAST,
                stream=True,
                timeout=timeout,
            )
            next(answer.iter_content(100), None)
            answer.close()
        except requests.RequestException:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(clients)))
    deadline = time.monotonic() + 60
    open_videos = gauge(service, "xactor_serve_videos_open")
    while open_videos and time.monotonic() < deadline:
        time.sleep(1)
        open_videos = gauge(service, "xactor_serve_videos_open")
    assert open_videos == 0
    assert service.post(image=face, audio=wav(0.4), **FAST).status_code == 200


def gauge(service: Service, name: str) -> float:
    """Return the sum of a metric's samples."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(service.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    )


def test_metrics_of_all_replicas_parse_as_prometheus(service, face):
    assert service.post(image=face, audio=wav(0.5), **FAST).status_code == 200
    deadline = time.monotonic() + 60
    wanted = {
        "first_fragment_seconds",
        "chunk_seconds",
        "window_seconds",
        "windows",
        "batch_size",
        "queue_depth",
        "videos_open",
    }
    wanted = {f"xactor_serve_{name}" for name in wanted}
    # Ray's agents report every few seconds.
    while time.monotonic() < deadline:
        answer = service.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        if wanted <= set(families):
            break
        time.sleep(1)
    assert wanted <= set(families)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families["xactor_serve_chunk_seconds"].type == "histogram"
    assert all(name.startswith("xactor_serve_") for name in families)
    series = [
        (sample.name, *sorted(sample.labels.items())) for one in families.values() for sample in one.samples
    ]
    assert {name for _, *labels in series for name, _ in labels} == {
        "of",
        "code",
        "le",
        "deployment",
        "replica",
    }
    assert len(set(series)) == len(series)


def test_health_and_schema_are_served(service):
    assert service.get("/healthz").json() == {"status": "ok"}
    schema = service.get("/openapi.json").json()
    post = schema["paths"]["/v1/videos"]["post"]
    codes = {
        "400": "bad_input",
        "401": "bad_key",
        "413": "too_large",
        "415": "wrong_type",
        "422": "bad_option",
        "429": "too_many",
        "500": "failed",
        "503": "full",
        "504": "timed_out",
    }
    assert set(post["responses"]) == {"200", *codes}
    for status, code in codes.items():
        answer = post["responses"][status]
        assert answer["content"]["application/json"]["example"]["error"]["code"] == code
        assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "500", "503", "504"))
    [scheme] = post["security"]
    assert schema["components"]["securitySchemes"][next(iter(scheme))]["scheme"] == "bearer"
    assert "multipart/form-data" in post["requestBody"]["content"]
    fields = schema["components"]["schemas"]["VideoForm"]["properties"]
    assert fields["motion_steps"]["examples"] == [20]


def test_pages_need_no_other_host(service):
    for path in ("/", "/docs"):
        page = service.get(path)
        assert page.status_code == 200
        assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page.text)
    assert "motion_steps" in page.text
    assert "bad_input" in page.text


def test_head_is_answered_as_get_without_a_body(service):
    for path in ("/", "/healthz", "/metrics", "/openapi.json", "/docs"):
        answer = requests.head(service.url + path, timeout=60)
        assert (answer.status_code, answer.content) == (200, b"")
    assert requests.head(service.url + "/v1/videos", timeout=60).status_code == 405


def test_pages_of_configured_origins_may_use_the_api(locked):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, status in (("https://app.example", 200), ("https://evil.example", 400)):
        answer = requests.options(f"{locked.url}/v1/videos", headers={"Origin": origin, **ask}, timeout=60)
        assert answer.status_code == status
        assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == (status == 200)
    # A page can read an error too.
    answer = locked.get("/metrics", headers={"Origin": "https://app.example"})
    check_error(answer, 401, "bad_key")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "X-Frames" in answer.headers["Access-Control-Expose-Headers"]


def test_huge_headers_are_refused(service):
    # Serve's proxy may refuse the larger header before it reaches the service.
    for size in (2**17, 2**20):
        answer = service.get("/healthz", headers={"X-Long": "a" * size})
        assert 400 <= answer.status_code < 500
    assert service.get("/healthz", headers={"X-Long": "a" * 2**14}).status_code == 200
    assert service.get("/healthz").status_code == 200


# --- WebSocket ----------------------------------------------------------------------------------------------------


def start(face: bytes, **changes) -> str:
    return json.dumps({"image": base64.b64encode(face).decode(), **FAST, **changes})


def test_websocket_with_huge_headers_is_refused(service):
    async def connect() -> None:
        url = service.url.replace("http", "ws", 1) + "/v1/stream"
        async with websockets.connect(url, additional_headers={"X-Long": "a" * 2**17}):
            pass

    with pytest.raises((websockets.WebSocketException, OSError)):
        asyncio.run(connect())
    assert service.get("/healthz").status_code == 200


async def converse(
    service: Service, messages: list[str | bytes], headers: dict[str, str] | None = None
) -> list[str | bytes]:
    """Send all messages and return all answers until the service closes the connection."""
    url = service.url.replace("http", "ws", 1) + "/v1/stream"
    async with websockets.connect(url, max_size=None, additional_headers=headers) as connection:

        async def send() -> None:
            for message in messages:
                await connection.send(message)

        sending = asyncio.create_task(send())
        received = []
        try:
            async with asyncio.timeout(90):
                async for message in connection:
                    received.append(message)
        except websockets.ConnectionClosedError:
            # The service closes the connection with the code of an error, which its last message describes.
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return received


def test_websocket_makes_the_frames_of_the_whole_file(service, face, tmp_path):
    sound = speech(2.1)
    pieces = [piece.tobytes() for piece in np.array_split(sound, 30)]
    received = asyncio.run(converse(service, [start(face), *pieces, '{"type": "end"}']))
    hello, *video, end = received
    assert json.loads(hello)["type"] == "start"
    assert json.loads(end) == {"type": "end", "frames": round(2.1 * 25)}
    live = frames(b"".join(part for part in video if isinstance(part, bytes)), tmp_path)

    def distance(sound: bytes) -> float:
        whole = frames(service.post(image=face, audio=sound, **FAST).content, tmp_path)
        return float(np.abs(np.stack(live).astype(int) - np.stack(whole)).mean())

    # Floating-point sums in another order round differently, and the video encoder amplifies the difference.
    assert distance(wav(2.1)) < 0.1 * distance(wav(2.1, seed=1))


@pytest.mark.parametrize(
    ("messages", "code", "expected"),
    [
        ([b"\0\0"], "bad_option", "must be JSON"),
        (["nonsense"], "bad_option", "JSON"),
        (['{"image": ""}'], "bad_input", "empty"),
        (["START", b"\0"], "bad_option", "two bytes a sample"),
        (["START", "hello"], "bad_option", "send audio as bytes"),
        (["START", '{"type": "end"}'], "bad_input", "too short"),
        (["RATE"], "bad_option", "sample_rate_hz"),
        (["START", bytes(2 * 16_000 * 21)], "too_large", "20 s"),
        (["START"], "timed_out", "no message arrived for 5 s"),
    ],
    ids=["bytes first", "no json", "no image", "odd", "text", "no sound", "rate", "long", "silence"],
)
def test_bad_websocket_messages_are_refused(service, face, messages, code, expected):
    # The parameters have these names in place of messages with the portrait.
    placeholders = {"START": start(face), "RATE": start(face, sample_rate_hz=44_100)}
    received = asyncio.run(
        converse(service, [placeholders.get(m, m) if isinstance(m, str) else m for m in messages])
    )
    error = json.loads(received[-1])["error"]
    assert error["code"] == code
    assert expected in error["message"]
    assert error["request_id"]


# --- keys -----------------------------------------------------------------------------------------------------------


def test_every_route_except_the_page_and_health_needs_a_key(locked, face):
    sound = wav(0.4)
    assert locked.get("/").status_code == 200
    assert locked.get("/healthz").status_code == 200
    for given in (None, "Bearer wrong", "sesame", "Bearer"):
        headers = {"Authorization": given} if given else None
        check_error(locked.post(image=face, audio=sound, headers=headers, **FAST), 401, "bad_key")
        check_error(locked.get("/metrics", headers=headers), 401, "bad_key")
    assert (
        locked.post(image=face, audio=sound, headers={"Authorization": "Bearer open"}, **FAST).status_code
        == 200
    )


def test_websocket_key_is_in_the_first_message(locked, face):
    received = asyncio.run(converse(locked, [start(face)]))
    assert json.loads(received[-1])["error"]["code"] == "bad_key"
    messages = [start(face, key="sesame"), speech(0.4).tobytes(), '{"type": "end"}']
    assert json.loads(asyncio.run(converse(locked, messages))[-1]) == {"type": "end", "frames": 10}


def test_a_websocket_key_may_be_in_the_header(locked, face):
    messages = [start(face), speech(0.4).tobytes(), '{"type":"end"}']
    received = asyncio.run(converse(locked, messages, headers={"Authorization": "Bearer open"}))
    assert json.loads(received[-1]) == {"type": "end", "frames": 10}
    with pytest.raises(websockets.InvalidStatus):
        asyncio.run(converse(locked, messages, headers={"Authorization": "Bearer wrong"}))


def test_clients_that_send_nothing_take_no_place_of_others(locked, face):
    """Open many WebSockets without a message, and many uploads that stall. Another client is served, and probes are."""

    async def hold() -> None:
        silent = [asyncio.create_task(converse(locked, [])) for _ in range(70)]
        uploads = [
            asyncio.create_task(asyncio.to_thread(begin_upload, locked, 1000, "sesame")) for _ in range(12)
        ]
        await asyncio.sleep(1)
        begun = time.monotonic()
        assert (await asyncio.to_thread(locked.get, "/healthz")).status_code == 200
        assert time.monotonic() - begun < 5
        open_key = {"Authorization": "Bearer open"}
        made = await asyncio.to_thread(locked.post, image=face, audio=wav(0.2), headers=open_key, **FAST)
        assert made.status_code == 200
        codes = [json.loads(received[-1])["error"]["code"] for received in await asyncio.gather(*silent)]
        # At the beginning two may wait. Others may follow when these have timed out.
        assert set(codes) == {"too_many", "timed_out"}
        assert codes.count("timed_out") <= 4
        statuses = [answer.split()[1] for answer in await asyncio.gather(*uploads)]
        assert sorted(set(statuses)) == ["429", "504"]
        assert statuses.count("504") <= 2

    asyncio.run(hold())


def test_each_key_has_a_limit_of_its_own(locked, face):
    def ask(_) -> requests.Response:
        return locked.post(image=face, audio=wav(4), headers={"Authorization": "Bearer sesame"}, **FAST)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) <= 3
    for answer in refused:
        check_error(answer, 429, "too_many")
        assert int(answer.headers["Retry-After"]) > 0
