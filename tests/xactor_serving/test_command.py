"""Test xactor-serve: its help, its refusals, and that it starts, answers and ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import requests
from client import FAST, frames, wav
from pydantic import ValidationError

from xactor_platform.cluster.local import free_port
from xactor_serving.app import build
from xactor_serving.arguments import Arguments, Limits, ServeCommand, gpu_share

ENV = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XACTOR_"))}
ENV |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}


def xactor_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run xactor-serve to its end."""
    command = [sys.executable, "-m", "xactor_serving.command", *arguments]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)


def test_help_names_routes_keys_and_every_argument():
    run = xactor_serve("--help")
    assert run.returncode == 0, run.stderr
    for route in (
        "POST /v1/videos",
        "WS   /v1/stream",
        "GET  /healthz",
        "GET  /metrics",
        "GET  /openapi.json",
    ):
        assert route in run.stdout
    assert "XACTOR_API_KEYS" in run.stdout
    assert run.stdout.index("Example:") < run.stdout.index("--model")
    flags = [name for name in Arguments.model_fields if name != "limits"]
    flags += [f"limits.{name}" for name in Limits.model_fields]
    for name in (*flags, "host", "port"):
        assert f"--{name.replace('_', '-')} " in run.stdout, name
    assert "--device {auto,cpu,cuda}" in run.stdout


def test_missing_extra_is_named_in_one_line():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('fastapi', 'ray')))\n"
        "sys.argv = ['xactor-serve', '--help']\n"
        "from xactor_serving.command import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        "xactor-serve: error: fastapi, ray not installed; run: pip install 'xactor-ray[serving]'\n"
    )


def test_folder_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nowhere: not a model folder"):
        ServeCommand(model="nowhere").check_model()


def test_a_model_whose_parts_do_not_fit_is_refused(model, tmp_path, capsys):
    ServeCommand(model=model).check_model()
    assert "made by a version that did not record the origin of motion latents" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / "other")
    for component, origin in (("motion", "controls-1"), ("unet", "motion-encoder-0")):
        file = other / component / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "latent_origin": origin}))
    message = "other/motion works with those of controls-1, .*other/unet with those of motion-encoder-0"
    with pytest.raises(ValueError, match=message):
        ServeCommand(model=str(other)).check_model()
    # A Serve config file does not use the command.
    with pytest.raises(ValueError, match=message):
        build(Arguments(model=str(other)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "port\n.*greater than or equal to 1 .*input_value=0"),
        ({"port": 65_536}, "port\n.*less than or equal to 65535 .*input_value=65536"),
        ({"render_replicas": 65}, "render_replicas\n.*less than or equal to 64 .*input_value=65"),
        ({"limits": {"max_videos": 0}}, "limits.max_videos\n.*greater than or equal to 1 .*input_value=0"),
        ({"limits": {"most_videos": 1}}, "limits.most_videos\n.*not permitted"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ServeCommand(**options)


def test_refusal_names_the_value_and_exits_2():
    run = xactor_serve("--model", "nowhere")
    assert run.returncode == 2
    assert run.stderr == "xactor-serve: error: nowhere: not a model folder, model_index.json is missing\n"
    run = xactor_serve("--port", "0")
    assert run.returncode == 2
    assert "greater than or equal to 1" in run.stderr
    assert "input_value=0" in run.stderr


def test_flags_reach_the_application(tmp_path):
    command = ServeCommand(
        model=str(tmp_path), device="cpu", stuck_s=5, gpus=0.25, limits=Limits(max_videos=3)
    )
    arguments = command.arguments(cpus=2, gpus=0)
    assert arguments == Arguments(
        model=str(tmp_path), device="cpu", stuck_s=5, cpus=2, gpus=0.25, limits=Limits(max_videos=3)
    )


@pytest.mark.parametrize(
    ("gpus", "replicas", "share"), [(0, 2, 0), (1, 2, 0.5), (2, 3, 0.5), (8, 2, 1), (1, 8, 0.125)]
)
def test_replicas_share_gpus_so_that_all_fit(gpus, replicas, share):
    assert gpu_share(gpus, replicas) == share
    if gpus:
        replicas_per_gpu = int(1 / share)
        assert replicas_per_gpu * gpus >= replicas


@pytest.mark.soak
@pytest.mark.cluster
def test_a_gpu_that_is_missing_is_refused(model):
    pytest.importorskip("torch")
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = xactor_serve("--model", model, "--device", "cuda")
    assert run.returncode == 2
    assert "--device cuda: Ray finds no GPU here" in run.stderr


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process and its descendants listen.

    The replicas are left out: in Ray 2.60 each has a port on all addresses, and no setting changes that.
    """
    service = psutil.Process(pid)
    return {
        connection.laddr.ip
        for process in (service, *service.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN and "ServeReplica" not in " ".join(process.cmdline())
    }


@pytest.mark.cluster
def test_service_answers_until_sigterm_and_finishes_its_videos(model, face, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "xactor_serving.command", "--model", model, "--port", str(port)]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Serving "):
                    break
            url = f"http://127.0.0.1:{port}"
            assert url in line
            # No other machine reaches the ports of the service and of its Ray, such as the one of the metrics.
            assert listening(process.pid) == {"127.0.0.1", "::ffff:127.0.0.1"}
            form = {"image": face, "audio": wav(4)}
            answer = requests.post(f"{url}/v1/videos", files=form, data=FAST, stream=True, timeout=60)
            assert answer.status_code == 200
            # The service finishes the video that is in progress.
            process.send_signal(signal.SIGTERM)
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
    raise AssertionError("a process still listens on the port")
