"""Run a command on a local Ray cluster that grows and shrinks with Ray's own autoscaler.

    python jobs/local_cluster.py --render 3 -- python jobs/dub_bulk.py --manifest items.jsonl --output out \\
        --pools.groups

The nodes are processes on this machine. The job prints a line whenever the number of nodes changes. When the command
after `--` has ended and the last worker node has gone, the job ends with that command's exit status. Without a command
the job runs until Ctrl-C. In the example, `--pools.groups` makes the command place its actors on the node groups.
"""

import _checkout  # noqa: F401

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.cluster.local import LocalCluster, WorkerGroup, local_cluster


@dataclass(frozen=True, kw_only=True)
class StartLocalCluster:
    """Choose the sizes of the head node and of two groups of worker nodes, `motion` and `render`."""

    cpus: int = 1
    """CPUs of the head node, which is never removed."""
    node_cpus: float = 1
    """CPUs of each worker node."""
    motion: int = 1
    """Maximum number of nodes in the group `motion`; 0 leaves the group out."""
    render: int = 3
    """Maximum number of nodes in the group `render`; 0 leaves the group out."""
    idle_s: float = 6
    """Seconds without work after which a node is removed."""


def main() -> int:
    # Options of this job come before `--`, the command comes after it.
    options, command = sys.argv[1:], []
    if "--" in options:
        mark = options.index("--")
        options, command = options[:mark], options[mark + 1 :]
    args = tyro.cli(StartLocalCluster, args=options, description=__doc__)
    groups = {
        name: WorkerGroup(cpus=args.node_cpus, max_nodes=max_nodes)
        for name, max_nodes in (("motion", args.motion), ("render", args.render))
        if max_nodes
    }
    with local_cluster(cpus=args.cpus, groups=groups, idle_s=args.idle_s) as cluster:
        env = cluster.env | {"RAY_ADDRESS": cluster.address}
        if not command:
            print_now(f"RAY_AUTH_MODE=disabled RAY_ADDRESS={cluster.address}  # set these to use the cluster")
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(cluster, ended), daemon=True)
        watcher.start()
        try:
            if command:
                status = subprocess.run(command, env=env, check=False).returncode
            else:
                # Only Ctrl-C ends this loop.
                while True:
                    time.sleep(1)
        except KeyboardInterrupt:
            return 130
        ended.set()
        # The last nodes go `idle_s` after the command has ended. Do not wait more than a minute longer than that.
        watcher.join(args.idle_s + 60)
        return status


def watch(cluster: LocalCluster, ended: threading.Event) -> None:
    """Print the number of nodes in each group whenever it changes.

    Return when `ended` is set and no worker node is left.
    """
    before = None
    while True:
        nodes = cluster.worker_nodes()
        if nodes != before:
            counts = ", ".join(f"{count} {group}" for group, count in sorted(nodes.items()))
            print_now(f"nodes: {counts or 'head only'}")
        if ended.is_set() and not nodes:
            return
        before = nodes
        time.sleep(0.5)


if __name__ == "__main__":
    # The cluster's processes run without authentication, and this process must use the same authentication mode.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    run_command(main)
