"""A Ray cluster of one's own on this machine: started for a purpose, ended by its own process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_S = 90.0


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    address: of the GCS, for `ray.init`. dashboard: the URL that jobs are submitted to. env: what a process needs in
    its environment to talk to it.
    """

    address: str
    dashboard: str
    env: dict[str, str]

    def submit(self, entrypoint: list[str], *, working_dir: Path) -> int:
        """`ray job submit --working-dir ... -- entrypoint`, its output passed on. Returns the exit code."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        command += [
            "--address",
            self.dashboard,
            "--working-dir",
            str(working_dir),
            "--log-style",
            "record",
            "--",
        ]
        return subprocess.run([*command, *entrypoint], env=self.env, cwd=working_dir, check=False).returncode


@contextlib.contextmanager
def local_cluster(
    *, cpus: int, python: str = sys.executable, log: Path | None = None
) -> Iterator[LocalCluster]:
    """Starts a cluster on the loopback interface and ends it with the block, and nothing else on this machine.

    Args:
        cpus: how many CPUs it says it has; may be more than there are.
        python: whose environment its workers have.
        log: where its own output goes.

    Raises:
        RuntimeError: it did not start in 90 s.
    """
    port, dashboard_port = free_port(), free_port()
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "RAY_AUTH_MODE": "disabled",  # a throwaway cluster that only this machine can reach
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": dashboard,  # or they look for a file that another cluster may have left
        "PATH": f"{Path(python).parent}{os.pathsep}{env.get('PATH', '')}",
    }
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    command += [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        "--include-dashboard=true",
    ]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("w")) if log else subprocess.DEVNULL
        head = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(_end, head)
        deadline = time.monotonic() + START_S
        while not _answers(f"{dashboard}/api/version"):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"Ray did not start on port {port} in {START_S:g} s; its output: {log or 'not kept'}"
                )
            time.sleep(0.2)
        yield LocalCluster(f"127.0.0.1:{port}", dashboard, env)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def _end(head: subprocess.Popen) -> None:
    """Asks `ray start --block` to end what it started; what does not listen is killed with its session."""
    head.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
