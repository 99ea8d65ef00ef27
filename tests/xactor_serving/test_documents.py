"""Test that docs/http-api.md and docs/websocket.md describe the service, and that the clients in them work."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from client import FAST, frames, wav

from xactor_serving import errors
from xactor_serving.video_options import StreamStart, VideoForm, VideoOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"
HTTP, WEBSOCKET = ((DOCS / name).read_text() for name in ("http-api.md", "websocket.md"))


def client_of(page: str) -> dict[str, Any]:
    """Return the names that a page's client defines."""
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"__name__": "client"}
    exec(compile(code, "client", "exec"), names)
    return names


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without the table's header."""
    table = re.search(r"((?:^\|.*\n)+)", page[page.index(heading) :], re.M)
    assert table is not None, heading
    lines = table[1].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_fields_are_documented():
    documented = {name: default for name, _, default, _ in rows(HTTP, "## POST /v1/videos")}
    assert set(documented) == set(VideoForm.model_fields)
    for name, default in documented.items():
        field = VideoForm.model_fields[name]
        assert field.is_required() == (not default), name
        shown = "the model's" if field.default is None else str(field.default).lower()
        assert not default or shown == default, name
    first_message = {row[0] for row in rows(WEBSOCKET, "The first message has these fields")}
    assert first_message == set(StreamStart.model_fields) - set(VideoOptions.model_fields)


def test_error_codes_are_documented():
    documented = {(row[0], row[1]) for row in rows(HTTP, "## Errors")}
    source = "".join(path.read_text() for path in Path(errors.__file__).parent.glob("*.py"))
    assert documented == set(re.findall(r"ServiceError\(\s*(\d{3}), \"(\w+)\"", source))


@pytest.mark.cluster
def test_routes_are_documented(service):
    schema = service.get("/openapi.json").json()
    documented = " ".join(row[0] for row in rows(HTTP, "# HTTP API"))
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in documented
    for path in ("/", "/docs", "/healthz"):
        assert service.get(path).status_code == 200


@pytest.mark.cluster
def test_http_client_makes_a_video(service, face, tmp_path):
    (tmp_path / "face.png").write_bytes(face)
    (tmp_path / "speech.wav").write_bytes(wav(0.8))
    make_video = client_of(HTTP)["make_video"]
    make_video(service.url, tmp_path / "face.png", tmp_path / "speech.wav", tmp_path / "out.mp4", **FAST)
    assert len(frames((tmp_path / "out.mp4").read_bytes(), tmp_path)) == 20
    (tmp_path / "speech.wav").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"bad_input: audio: .* \(request "):
        make_video(service.url, tmp_path / "face.png", tmp_path / "speech.wav", tmp_path / "out.mp4")


@pytest.mark.cluster
def test_websocket_client_makes_a_video(service, face, tmp_path):
    (tmp_path / "face.png").write_bytes(face)
    (tmp_path / "speech.wav").write_bytes(wav(0.8))
    speak, url = client_of(WEBSOCKET)["speak"], service.url.replace("http", "ws", 1)
    files = (tmp_path / "face.png", tmp_path / "speech.wav", tmp_path / "out.mp4")
    assert asyncio.run(speak(url, *files, **FAST)) == 20
    assert len(frames((tmp_path / "out.mp4").read_bytes(), tmp_path)) == 20
    with pytest.raises(RuntimeError, match="motion_steps"):
        asyncio.run(speak(url, *files, motion_steps=0))


@pytest.mark.cluster
def test_clients_send_their_key(locked, face, tmp_path):
    (tmp_path / "face.png").write_bytes(face)
    (tmp_path / "speech.wav").write_bytes(wav(0.4))
    files = (tmp_path / "face.png", tmp_path / "speech.wav", tmp_path / "out.mp4")
    make_video = client_of(HTTP)["make_video"]
    make_video(locked.url, *files, key="sesame", **FAST)
    with pytest.raises(RuntimeError, match="bad_key"):
        make_video(locked.url, *files, **FAST)
    speak, url = client_of(WEBSOCKET)["speak"], locked.url.replace("http", "ws", 1)
    # The first key's video may not have left its place yet, and a key has one place.
    assert asyncio.run(speak(url, *files, key="open", **FAST)) == 10
