"""The `xactor-serve` command: the service on one machine, until it is ended.

`serve run xactor_serving.app:build model=DIR` and Serve config files do the same on a cluster.
"""

import contextlib
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import tyro

DEMO_MODEL = Path("demo/model")


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve a model over HTTP: a page at /, POST /v1/videos, WS /v1/stream.

    Set XACTOR_API_KEYS, a list parted by commas, to have clients need a key.

    Args:
        model: a model's folder or URI; the demo's where it is not given.
        host: to listen at; 0.0.0.0 is reached from everywhere.
        port: to listen at.
        motion_replicas, render_replicas: how many; 0 lets them come and go with the load, up to 4.
    """

    model: str = str(DEMO_MODEL)
    host: str = "127.0.0.1"
    port: int = 8000
    motion_replicas: int = 1
    render_replicas: int = 1

    def __post_init__(self):
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port must be within 1..65535, got {self.port}")
        for name in ("motion_replicas", "render_replicas"):
            if not 0 <= getattr(self, name) <= 64:
                raise ValueError(f"{name} must be within 0..64, got {getattr(self, name)}")
        if "://" not in self.model and not (Path(self.model) / "model_index.json").is_file():
            hint = "; `make demo` leaves one there" if self.model == str(DEMO_MODEL) else ""
            raise ValueError(f"{self.model}: no model's folder (model_index.json is missing){hint}")


def main() -> None:
    try:
        command = tyro.cli(ServeCommand, prog="xactor-serve", description=__doc__)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run(command)


def run(command: ServeCommand) -> None:
    """Until SIGINT or SIGTERM; what is being made is made first, within Serve's time for it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from xactor_serving.app import DRAIN_S, Arguments, build

    most, cpus = _most(command), 1
    here = not os.environ.get("RAY_ADDRESS")
    if here:  # replicas are processes; that there are fewer cores than they ask for is no reason to wait
        cpus = max((os.cpu_count() or 1) // most, 1)
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, most), log_to_driver=False)
    else:
        ray.init()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
        signal.signal(number, lambda *_: ended.set())
    try:
        serve.start(http_options={"host": command.host, "port": command.port})
        model = command.model if "://" in command.model else str(Path(command.model).resolve())
        arguments = Arguments(
            model=model,
            motion_replicas=command.motion_replicas,
            render_replicas=command.render_replicas,
            cpus=cpus,  # and as many threads
        )
        application = build(arguments)
        ingress = serve.run(application, name="xactor")
        print(f"serving {command.model} at http://{command.host}:{command.port}/", flush=True)
        ended.wait()
        print("ending: videos in the making are finished first", flush=True)
        with contextlib.suppress(TimeoutError):
            ingress.drain.remote().result(timeout_s=DRAIN_S)
        serve.delete("xactor")
    finally:
        if here:
            serve.shutdown()
        ray.shutdown()


def _most(command: ServeCommand) -> int:
    """How many replicas there may be."""
    return (command.motion_replicas or 4) + (command.render_replicas or 4)


if __name__ == "__main__":
    main()
