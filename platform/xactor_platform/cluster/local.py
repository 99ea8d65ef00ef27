"""A Ray cluster of one's own on this machine: started for a purpose, ended by its own process."""

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

START_S = 90.0
_HEAD_ID = "f" * 51 + "00000"  # what Ray's provider of pretended nodes calls the head
_WORKER_STORE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Nodes that Ray's autoscaler adds and takes away, with the label ray.io/node-group of the group's name."""

    cpus: float = 1
    max_nodes: int = 2


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

    def worker_nodes(self) -> Counter[str]:
        """How many nodes there are now, by group."""
        from ray._raylet import GcsClient  # pyright: ignore

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
    """Starts a cluster on the loopback interface and ends it with the block, and nothing else on this machine.

    Args:
        cpus: how many CPUs its first node says it has; may be more than there are.
        groups: with these it grows and shrinks, by Ray's own autoscaler, with nodes that are processes here.
        idle_s: how long such a node stays without work.
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
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # who ends it has no more requests for it
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
            env |= {"RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID}
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
        once = ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING")  # the head's own
        others = {name: value for name, value in env.items() if name not in once}
        yield LocalCluster(f"127.0.0.1:{port}", dashboard, others)


def _autoscaling(
    groups: Mapping[str, WorkerGroup], address: str, cpus: int, idle_s: float
) -> dict[str, object]:
    """The autoscaler's configuration for nodes that are processes of this machine."""
    head = "ray.head.default"
    types: dict[str, object] = {head: {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}}
    for name, group in groups.items():
        types[name] = {
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
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
    return {
        "cluster_name": "local",
        "provider": provider,
        "auth": {"ssh_user": "root"},
        "max_workers": sum(group.max_nodes for group in groups.values()),
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": head,
        "available_node_types": types,
        "file_mounts": {},
        **{name: [] for name in (*lists, "head_start_ray_commands", "worker_start_ray_commands")},
        "cluster_synced_files": [],
    }


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
