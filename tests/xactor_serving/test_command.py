"""xactor-serve: what it refuses, and that it starts, answers and ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
import requests
from client import FAST, frames, wav

from xactor_platform.cluster.local import free_port
from xactor_serving.command import ServeCommand


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "nowhere"}, "nowhere: no model's folder"),
        ({"model": "demo/model"}, "`make demo` leaves one there"),
        ({"port": 0}, "port must be within 1..65535, got 0"),
        ({"render_replicas": 65}, "render_replicas must be within 0..64, got 65"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(tmp_path, monkeypatch, model, options, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        ServeCommand(**{"model": model, **options})


@pytest.mark.cluster
def test_it_serves_until_it_is_ended(model, face, tmp_path):
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "xactor_serving.command", "--model", model, "--port", str(port)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serving "):
                    break
            url = f"http://127.0.0.1:{port}"
            assert url in line
            form = {"image": face, "audio": wav(4)}
            answer = requests.post(f"{url}/v1/videos", files=form, data=FAST, stream=True, timeout=60)
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)  # a video is in the making, and is finished
            assert len(frames(answer.content, tmp_path)) == 100
            assert process.wait(120) == 0
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            requests.get(f"{url}/healthz", timeout=2)
        except requests.ConnectionError:
            return
        time.sleep(0.2)
    raise AssertionError("something still listens")
