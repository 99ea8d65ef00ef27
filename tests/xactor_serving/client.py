"""Provide a client of the service, inputs to send, and applications to send them to."""

import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

TIMEOUT_S = 90
FAST = {"motion_steps": 2, "render_steps": 1, "render_cfg": 1}


@dataclass(frozen=True)
class Service:
    """Send requests to one application."""

    url: str

    def post(
        self, *, stream_response: bool = False, headers: dict[str, str] | None = None, **fields
    ) -> requests.Response:
        """Post a form to /v1/videos. Values that are bytes or tuples are sent as files."""
        files = {name: value for name, value in fields.items() if isinstance(value, bytes | tuple)}
        data = {name: value for name, value in fields.items() if name not in files}
        return requests.post(
            f"{self.url}/v1/videos",
            files=files,
            data=data,
            headers=headers,
            stream=stream_response,
            timeout=TIMEOUT_S,
        )

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.url + path, timeout=TIMEOUT_S, **options)


def speech(seconds: float, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return noise whose volume rises and falls three times a second, PCM16 [N]."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (3000 * noise * (1 + np.sin(2 * np.pi * 3 * time))).astype("<i2")


def wav(seconds: float, rate_hz: int = 16_000, seed: int = 0) -> bytes:
    """Return `speech` as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(speech(seconds, rate_hz, seed).tobytes())
    return buffer.getvalue()


def png(picture: np.ndarray) -> bytes:
    """Return a picture uint8 [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def run(serving: str, model: str, name: str, *, keys: str = "", **options: Any) -> Service:
    """Run an application under /<name>, with half a CPU for each replica."""
    from ray import serve

    from xactor_serving.app import build
    from xactor_serving.arguments import Arguments

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XACTOR_API_KEYS", keys)
        application = build(Arguments(model=model, cpus=0.5, **options))
    serve.run(application, name=name, route_prefix=f"/{name}")
    return Service(f"{serving}/{name}")


def delete(name: str) -> None:
    from ray import serve

    serve.delete(name)


def frames(video: bytes, folder: Path) -> list[np.ndarray]:
    from xactor.media import read_frames

    path = folder / "read.mp4"
    path.write_bytes(video)
    return list(read_frames(path))
