"""Define the HTTP and WebSocket routes."""

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from xactor import __version__
from xactor.media import Sound, remux
from xactor.rates import frame_count
from xactor_serving.docs_page import docs_page
from xactor_serving.errors import (
    ServiceError,
    bad_input,
    bad_key,
    bad_option,
    failed,
    full,
    not_found,
    not_ready,
    timed_out,
    too_large,
    too_many,
    validation_line,
    wrong_method,
    wrong_type,
)
from xactor_serving.generation import SoundBuffer
from xactor_serving.guard import Guard
from xactor_serving.metrics import count_error, metrics, scrape
from xactor_serving.stream_session import StreamSession
from xactor_serving.video_options import VideoForm
from xactor_serving.videos import Videos

_log = logging.getLogger("ray.serve")
_PAGE = Path(__file__).parent / "page"
# Files that the page at `/` offers for trying the service. The project made them: drawn people and a synthetic voice.
_EXAMPLES = {
    "portraits": sorted((_PAGE / "examples").glob("*.png")),
    "recordings": sorted((_PAGE / "examples").glob("*.m4a")),
}
# Longer than the deployments' own deadlines of `Replicas.check`.
_HEALTH_TIMEOUT_S = 8
# An example of each error answer, by status code.
_EXAMPLES_OF_ERRORS = (
    bad_input("image: no face is found in the picture of 640x480 px"),
    bad_key(),
    too_large("audio: longer than 3600 s, the maximum"),
    wrong_type("the body must be multipart/form-data, got application/json"),
    bad_option("motion_steps: Input should be greater than or equal to 1"),
    too_many("this client has 8 requests in progress, its maximum"),
    failed("the service failed; its log names this request id"),
    full("16 videos are in progress, the maximum"),
    timed_out("the upload took longer than 120 s"),
)


def _answer_of(error: ServiceError) -> dict[str, Any]:
    """Return OpenAPI's description of an error answer."""
    answer: dict[str, Any] = {
        "description": "An error",
        "content": {"application/json": {"example": error.body("4f5c0a9e7d1b4c0e8a6f3b2d1c0e9f8a")}},
    }
    if error.retry_after_s is not None:
        schema = {"type": "integer", "example": error.retry_after_s}
        answer["headers"] = {
            "Retry-After": {"description": "Seconds until a retry may succeed", "schema": schema}
        }
    return answer


# The error answers of `POST /v1/videos`, by status code.
_ERRORS: dict[int | str, dict[str, Any]] = {error.status: _answer_of(error) for error in _EXAMPLES_OF_ERRORS}
# Headers of answers that pages of other origins may read.
_EXPOSED_HEADERS = ("X-Request-ID", "X-Frames", "X-Notes", "Retry-After")
# The guard checks keys. This only describes the scheme in OpenAPI.
_NEEDS_KEY = [Security(HTTPBearer(auto_error=False, description="An API key, where the service needs one"))]


def make_api(videos: Videos, keys: tuple[str, ...], cors_origins: tuple[str, ...] = ()) -> ASGIApp:
    """Return the ASGI application: the routes behind the guard that checks keys and limits.

    Args:
        videos: Makes the videos.
        keys: Accepted API keys; empty if none is needed.
        cors_origins: Origins of other web pages that may use the API.
    """
    # FastAPI's own pages load scripts from other hosts, which a machine without a network cannot.
    api = FastAPI(
        title="X-Actor",
        version=__version__,
        description="A portrait and speech in, an acted portrait video out.",
        docs_url=None,
        redoc_url=None,
    )
    _handle_errors(api)
    _add_pages(api)

    @api.get("/healthz", responses={503: _answer_of(not_ready("the models do not answer (TimeoutError)"))})
    async def healthz() -> dict[str, str]:
        """Answer 200 when a request would work: uploads can be decoded, and both models answer."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await videos.check()
        except ServiceError:
            raise
        except Exception as error:
            raise not_ready(f"the models do not answer ({type(error).__name__})") from error
        return {"status": "ok"}

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: _ERRORS[401]},
        dependencies=_NEEDS_KEY,
    )
    async def show_metrics() -> Response:
        """Return the metrics of all replicas in Prometheus' text format."""
        return Response(await scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.post(
        "/v1/videos",
        response_class=StreamingResponse,
        responses={200: {"content": {"video/mp4": {}}, "description": "The video"}, **_ERRORS},
        dependencies=_NEEDS_KEY,
    )
    async def create_video(request: Request, form: _Fields, _: _FormChecked) -> Response:
        """Make a portrait speak. The mp4 (h264, aac) is as long as the audio, at 25 frames a second."""
        return await _create(videos, request, form)

    @api.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await StreamSession(videos, keys, socket).run()

    guard = Guard(api, keys=keys, limits=videos.limits, places=videos.places)
    if not cors_origins:
        return guard
    # The middleware is outside the guard, because browsers send no key when they ask for permission.
    return CORSMiddleware(
        guard,
        allow_origins=cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
        expose_headers=_EXPOSED_HEADERS,
    )


def _add_pages(api: FastAPI) -> None:
    """Add the routes of the pages for people, which need no network."""

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        examples = json.dumps({kind: [path.name for path in paths] for kind, paths in _EXAMPLES.items()})
        text = (_PAGE / "index.html").read_text(encoding="utf-8")
        return HTMLResponse(text.replace("EXAMPLES_JSON", examples))

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(api.openapi()))

    @api.get("/examples/{name}", include_in_schema=False)
    async def example(name: str) -> FileResponse:
        paths = [path for kind in _EXAMPLES.values() for path in kind if path.name == name]
        if not paths:
            raise not_found(f"/examples/{name}")
        return FileResponse(paths[0])


async def _check_form(request: Request) -> None:
    """Require a multipart form in which no field is repeated."""
    kind = request.headers.get("content-type", "")
    if kind.split(";")[0].strip().lower() != "multipart/form-data":
        raise wrong_type(f"the body must be multipart/form-data, got {kind or 'no content type'}")
    names = [name for name, _ in (await request.form()).multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise bad_option(f"{', '.join(repeated)}: given more than once")


# Types of a route's parameters, which tell FastAPI what to do before it calls the route: parse the form, and call
# `_check_form`.
_Fields = Annotated[VideoForm, Form(media_type="multipart/form-data")]
_FormChecked = Annotated[None, Depends(_check_form)]


async def _create(videos: Videos, request: Request, form: VideoForm) -> Response:
    """Make a video and return the answer: a fragmented mp4 that is sent while it is made, or a plain mp4 at the end."""
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        request.state.place.begin_video()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xactor-")))
        # Raise for options out of range before the files are decoded.
        form.configs()
        audio, track = folder / "audio", folder / "track"
        with audio.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, form.audio.file, file)
        face = asyncio.create_task(videos.face(await form.image.read(), form))
        # If both files are bad, only the audio's error is reported. Reading the picture's error here keeps asyncio from
        # logging that nobody read it.
        face.add_done_callback(lambda done: done.cancelled() or done.exception())
        stack.callback(face.cancel)
        # Only the decoding processes open what users sent. They wrote the track.
        samples = await videos.sound(audio, track)
        sound = await asyncio.to_thread(Sound.of, track)
        fragments = videos.fragments(face, SoundBuffer.whole(samples), sound, form)
        await stack.enter_async_context(aclosing(fragments))
        first = await anext(fragments)
        notes = (await face).notes
        headers = {"X-Frames": str(frame_count(len(samples)))}
        if notes:
            headers["X-Notes"] = "; ".join(notes)
        if not form.stream:
            return await _plain_mp4(_chained(first, fragments), folder, headers)
        metrics().first_fragment_s.observe(time.monotonic() - begun)
        # The answer begins with status 200, so a later error cannot become an error answer. The response takes over the
        # stack and closes it.
        return _VideoResponse(_chained(first, fragments), stack.pop_all(), headers)


async def _plain_mp4(
    fragments: AsyncGenerator[bytes, None], folder: Path, headers: dict[str, str]
) -> Response:
    """Write the fragments to a file, remux the file to a plain mp4, and return the plain mp4 as one answer."""
    fragmented, plain = folder / "fragments.mp4", folder / "video.mp4"
    with fragmented.open("wb") as file:
        async for data in fragments:
            await asyncio.to_thread(file.write, data)
    await asyncio.to_thread(remux, fragmented, plain)
    return Response(await asyncio.to_thread(plain.read_bytes), media_type="video/mp4", headers=headers)


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the first piece, then the rest."""
    yield first
    async for data in rest:
        yield data


class _VideoResponse(StreamingResponse):
    """Stream a video, and free its resources even if the client leaves before the first byte."""

    def __init__(self, body: AsyncGenerator[bytes, None], stack: AsyncExitStack, headers: dict[str, str]):
        super().__init__(body, media_type="video/mp4", headers=headers)
        self._stack = stack

    async def __call__(self, scope, receive, send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


def _handle_errors(api: FastAPI) -> None:
    """Register handlers that turn every exception into an error answer. All error answers have the same format."""

    def answer(request: Request, error: ServiceError) -> JSONResponse:
        count_error(error)
        return JSONResponse(error.body(request.state.request_id), error.status, headers=error.headers())

    @api.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError):
        return answer(request, error)

    @api.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError):
        return answer(request, bad_option(validation_line(error.errors(), VideoForm.model_fields)))

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException):
        # If `receive` raises while FastAPI parses the body, FastAPI wraps that exception in an HTTPException. Answer
        # with the original exception.
        if isinstance(error.__cause__, ServiceError):
            return answer(request, error.__cause__)
        path = request.url.path
        known = {404: not_found(path), 405: wrong_method(request.method, path)}
        return answer(
            request,
            known.get(error.status_code) or ServiceError(error.status_code, "bad_input", str(error.detail)),
        )

    @api.exception_handler(Exception)
    async def other_error(request: Request, error: Exception):
        _log.error("request %s failed", request.state.request_id, exc_info=error)
        return answer(request, failed("the service failed; its log names this request id"))
