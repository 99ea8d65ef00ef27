"""Start a Ray cluster on this machine, and end it without touching other clusters."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xactor_platform.cluster.upload import SUBMIT_MAX_BYTES, check_upload

# Maximum seconds until a cluster has started.
START_S = 90.0
# Seconds after which a cluster that should stop is killed.
_STOP_S = 20.0
# Id by which Ray's provider of fake nodes recognises the head node. Fake nodes are processes of one machine.
_HEAD_ID = "f" * 51 + "00000"
# Size of the object store of each worker node.
_WORKER_STORE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Describe nodes that Ray's autoscaler adds and removes. Their label ray.io/node-group is the group's name."""

    cpus: float = 1
    """CPUs of each node."""
    max_nodes: int = 2
    """Maximum number of nodes. The minimum is 0."""


@dataclass(frozen=True)
class LocalCluster:
    """Represent a running cluster."""

    address: str
    """Address of Ray's control service (GCS), for `ray.init`."""
    dashboard: str
    """URL that jobs are submitted to."""
    env: dict[str, str]
    """Environment variables for a process that uses the cluster."""

    def submit(self, entrypoint: list[str], *, working_dir: Path) -> int:
        """Run a command with `ray job submit`, print its output, and return its exit code.

        If `working_dir` is too large to upload, print the reason and return 2.
        """
        try:
            check_upload(working_dir, SUBMIT_MAX_BYTES)
        except ValueError as error:
            print(f"submit: {error}", file=sys.stderr)
            return 2
        command = self.submit_command(entrypoint, working_dir=working_dir)
        return subprocess.run(command, env=self.env, cwd=working_dir, check=False).returncode

    def submit_command(self, entrypoint: list[str], *, working_dir: Path) -> list[str]:
        """Return the command line of `ray job submit`. Run the command with `env` as its environment."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        command += ["--address", self.dashboard, "--working-dir", str(working_dir), "--log-style", "record"]
        return [*command, "--", *entrypoint]

    def worker_nodes(self) -> Counter[str]:
        """Return the number of worker nodes that are alive now, by group. The head node is in no group."""
        from ray._raylet import GcsClient  # pyright: ignore

        # State 0 is ALIVE.
        nodes = GcsClient(address=self.address).get_all_node_info().values()
        groups = (node.labels.get("ray.io/node-group") for node in nodes if node.state == 0)
        return Counter(group for group in groups if group)


@contextlib.contextmanager
def local_cluster(
    *,
    cpus: int,
    groups: Mapping[str, WorkerGroup] | None = None,
    idle_s: float = 6,
    python: str = sys.executable,
    log: Path | None = None,
) -> Iterator[LocalCluster]:
    """Start a cluster on the loopback interface. When the block ends, end this cluster and no other.

    Args:
        cpus: CPUs that the head node declares. They may be more than the machine has.
        groups: worker groups by name. Ray's autoscaler adds and removes their nodes, which are processes of this
            machine. Without groups there is only the head node.
        idle_s: seconds without work after which a worker node is removed.
        python: interpreter whose environment the workers use.
        log: file for the head node's output. None discards the output.

    Raises:
        RuntimeError: the cluster did not start in START_S seconds.
    """
    port, dashboard_port = free_port(), free_port()
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    env = _environment(dashboard, python)
    command = _start_command(python, cpus, port, dashboard_port)
    with contextlib.ExitStack() as stack:
        if groups:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xactor-cluster-"))
            scaling = Path(folder, "autoscaling.json")
            scaling.write_text(json.dumps(_autoscaling(groups, f"127.0.0.1:{port}", cpus, idle_s)))
            command.append(f"--autoscaling-config={scaling}")
            env |= {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        head_id = {"RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID}
        out = stack.enter_context(log.open("w")) if log else subprocess.DEVNULL
        head = subprocess.Popen(
            command,
            env=env | (head_id if groups else {}),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
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


def _environment(dashboard: str, python: str) -> dict[str, str]:
    """Return the environment variables for the cluster's processes and for processes that use the cluster."""
    # Drop Ray's variables, because they describe other clusters. Keep only RAY_worker_niceness, the priority of Ray's
    # workers on this machine.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name == "RAY_worker_niceness"
    }
    return env | {
        # Only this machine can reach the cluster, and the cluster is temporary.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # When the cluster ends, it has no requests to wait for.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Otherwise Ray reads the address from a file that another cluster may have left.
        "RAY_API_SERVER_ADDRESS": dashboard,
        "PATH": f"{Path(python).parent}{os.pathsep}{env.get('PATH', '')}",
    }


def _start_command(python: str, cpus: int, port: int, dashboard_port: int) -> list[str]:
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    return [*command, "--include-dashboard=true"]


def _autoscaling(
    groups: Mapping[str, WorkerGroup], address: str, cpus: int, idle_s: float
) -> dict[str, object]:
    """Return the autoscaler's configuration for nodes that are processes of this machine."""
    head = "ray.head.default"
    node_types: dict[str, object] = {head: {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}}
    for name, group in groups.items():
        node_types[name] = {
            "resources": {"CPU": group.cpus, "object_store_memory": _WORKER_STORE_BYTES},
            "labels": {"ray.io/node-group": name},
            "node_config": {},
            "min_workers": 0,
            "max_workers": group.max_nodes,
        }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": _HEAD_ID,
        "gcs_address": address,
        "launch_multiple": True,
    }
    # A node that is a process of this machine needs no commands that set it up or start Ray on it.
    setup = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
    no_commands = (*setup, "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "local",
        "provider": provider,
        "auth": {"ssh_user": "root"},
        "max_workers": sum(group.max_nodes for group in groups.values()),
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": head,
        "available_node_types": node_types,
        "file_mounts": {},
        **{name: [] for name in no_commands},
        "cluster_synced_files": [],
    }


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    """Return whether a GET request to the URL succeeds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def _end(head: subprocess.Popen) -> None:
    """Ask `ray start --block` to end the processes that it started, then kill the rest of its session."""
    head.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
