"""Run the `xactor-serve` command: serve a model on one machine until SIGINT or SIGTERM.

On a cluster, `serve run xactor_serving.app:build model=DIR` and Serve config files do the same.
"""

import contextlib
import importlib.util
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from xactor_serving.arguments import ServeCommand

DESCRIPTION = """Serve a model over HTTP and WebSocket, until SIGINT or SIGTERM.

Example:
    XACTOR_API_KEYS=secret xactor-serve --model model --port 8000
    curl --fail -H "Authorization: Bearer secret" -F image=@face.png -F audio=@speech.wav \\
        http://127.0.0.1:8000/v1/videos --output out.mp4

Routes:
    GET  /              a page to try the service
    POST /v1/videos     makes an mp4 from a portrait and speech, and sends it while it is made
    WS   /v1/stream     makes an mp4 from a portrait and speech that arrives while it is spoken
    GET  /healthz       status 200 if a request would work, 503 otherwise
    GET  /metrics       metrics of all replicas, in Prometheus' format
    GET  /openapi.json  the schema of the API

XACTOR_API_KEYS: API keys, comma-separated. If it is set, every route except / and /healthz needs one of the keys.

RAY_ADDRESS: if it is set, the service runs on that Ray cluster; otherwise on this machine alone."""

# Modules of the serving extra.
_MODULES = (
    "aiohttp",
    "fastapi",
    "prometheus_client",
    "psutil",
    "pydantic",
    "python_multipart",
    "ray",
    "tenacity",
)


def main() -> None:
    """Parse the command line and serve until a signal. The exit status is 2 if the service cannot start, else 0."""
    if missing := [name for name in _MODULES if importlib.util.find_spec(name) is None]:
        _refuse(f"{', '.join(missing)} not installed; run: pip install 'xactor-ray[serving]'")
    from xactor_serving.arguments import ServeCommand

    try:
        command = tyro.cli(ServeCommand, prog="xactor-serve", description=DESCRIPTION)
        command.check_model()
        run(command)
    except ValueError as error:
        _refuse(str(error))


def _refuse(message: str) -> None:
    print(f"xactor-serve: error: {message}", file=sys.stderr)
    sys.exit(2)


def run(command: "ServeCommand") -> None:
    """Serve until SIGINT or SIGTERM, then finish the videos in progress.

    Raises:
        ValueError: The command asks for a GPU and there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = not os.environ.get("RAY_ADDRESS")
    if local:
        # A Ray of one machine needs no address that other machines reach. Without this setting, Ray's metrics, its
        # agents and its control store listen on all addresses, whatever --host says. Ray reads it when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray import serve

    from xactor_serving.app import build
    from xactor_serving.arguments import gpu_share
    from xactor_serving.ingress import DRAIN_S

    replicas, cpus = command.max_replicas(), 1
    if local:
        # Each replica reserves at least one CPU, so Ray is told that this machine has at least one CPU per replica. On
        # a machine with fewer cores, the replicas share the cores.
        cpus = max((os.cpu_count() or 1) // replicas, 1)
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, replicas), log_to_driver=False)
    else:
        ray.init()
    ended = threading.Event()
    # Install the signal handlers after ray.init, because ray.init installs handlers of its own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        gpus = 0.0
        if command.device != "cpu":
            gpus = gpu_share(ray.cluster_resources().get("GPU", 0), replicas)
        if command.device == "cuda" and not gpus:
            raise ValueError("--device cuda: Ray finds no GPU here; use --device cpu or auto")
        serve.start(http_options={"host": command.host, "port": command.port})
        ingress = serve.run(build(command.arguments(cpus=cpus, gpus=gpus)), name="xactor")
        print(f"Serving {command.model} at http://{command.host}:{command.port}/", flush=True)
        ended.wait()
        print("Ending: finishing the videos in progress", flush=True)
        with contextlib.suppress(TimeoutError):
            ingress.drain.remote().result(timeout_s=DRAIN_S)
        serve.delete("xactor")
    finally:
        if local:
            serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
