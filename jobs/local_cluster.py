"""A cluster on this machine that grows and shrinks by Ray's own autoscaler: its nodes are processes here.

    python jobs/local_cluster.py --render 3 -- python jobs/dub_bulk.py --manifest items.jsonl --output out \\
        --pools.groups

It runs the command in the cluster, prints a line whenever a node comes or goes, and ends when the last one has gone,
with the command's exit status. Without a command it stays until Ctrl-C.
"""

import _checkout  # noqa: F401

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import tyro

from xactor_platform.cluster.local import LocalCluster, WorkerGroup, local_cluster


@dataclass(frozen=True, kw_only=True)
class Args:
    """Nodes of two groups, motion and render, beside the one that is always there."""

    cpus: int = 1
    """Of the first node."""
    node_cpus: float = 1
    """Of each other."""
    motion: int = 1
    """The most nodes of this group."""
    render: int = 3
    idle_s: float = 6
    """How long a node stays without work."""


def main() -> int:
    own, command = sys.argv[1:], []
    if "--" in own:
        mark = own.index("--")
        own, command = own[:mark], own[mark + 1 :]
    args = tyro.cli(Args, args=own)
    groups = {
        name: WorkerGroup(cpus=args.node_cpus, max_nodes=most)
        for name, most in (("motion", args.motion), ("render", args.render))
        if most
    }
    with local_cluster(cpus=args.cpus, groups=groups, idle_s=args.idle_s) as cluster:
        env = cluster.env | {"RAY_ADDRESS": cluster.address}
        if not command:
            print(
                f"RAY_AUTH_MODE=disabled RAY_ADDRESS={cluster.address}  # for what is to run here", flush=True
            )
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(cluster, ended), daemon=True)
        watcher.start()
        try:
            status = subprocess.run(command, env=env, check=False).returncode if command else None
            while status is None:
                time.sleep(1)
        except KeyboardInterrupt:
            return 130
        ended.set()
        watcher.join(args.idle_s + 60)
        return status


def watch(cluster: LocalCluster, ended: threading.Event) -> None:
    """Prints the nodes by group whenever their number changes, until the command has ended and none is left."""
    before = None
    while True:
        nodes = cluster.worker_nodes()
        if nodes != before:
            print(
                "nodes:", ", ".join(f"{n} {group}" for group, n in sorted(nodes.items())) or "the first alone"
            )
            sys.stdout.flush()
        if ended.is_set() and not nodes:
            return
        before = nodes
        time.sleep(0.5)


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"  # as the cluster's own processes have it
    sys.exit(main())
