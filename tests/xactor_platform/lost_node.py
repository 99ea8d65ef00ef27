"""Train on two nodes next to the head, lose one of them, and perhaps bring it back. test_elastic runs this.

python lost_node.py SHARDS STORAGE STEPS stays-away|comes-back
"""

import os
import subprocess
import sys
import threading
import time

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray counts the lost node as alive for some seconds and requests ranks on it. After this timeout it requests fewer.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25",
}

import ray
from ray.cluster_utils import Cluster
from small_run import config_of

from xactor_platform.cluster.local import free_port
from xactor_platform.training.launch import train
from xactor_platform.training.run.folder import METRICS, RunFolder

LOSE_AFTER = 8


def main(shards: str, storage: str, steps: str, lost_node: str) -> None:
    comes_back = lost_node == "comes-back"
    port = free_port()
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    head = {
        "num_cpus": 1,
        "dashboard_port": port,
        "include_dashboard": True,
        "object_store_memory": 256 << 20,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=256 << 20) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="WARNING")
    folder = RunFolder(storage, "run")
    # The new node is another process: Cluster.add_node sets signal handlers, which only the main thread may do.
    start_command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2"]
    start_command += [f"--object-store-memory={256 << 20}"]
    new_nodes: list[subprocess.Popen] = []

    def lose_a_node() -> None:
        while not any(row["step"] >= LOSE_AFTER for row in folder.read_lines(METRICS)):
            time.sleep(0.05)
        cluster.remove_node(nodes[1], allow_graceful=False)
        print("lost a node", flush=True)

        if comes_back:
            while not any(row["attempt"] > 1 for row in folder.read_lines(METRICS)):
                time.sleep(0.05)
            new_nodes.append(subprocess.Popen([*start_command, f"--address={cluster.address}"]))

    threading.Thread(target=lose_a_node, daemon=True).start()
    scale = {"ranks": 4, "min_ranks": 1, "cpus_per_rank": 1, "start_timeout_s": 60}
    scale |= {"resize_s": 3 if comes_back else 600, "collective_timeout_s": 120, "max_failures": 3}
    intervals = {"evaluate_every": 0, "checkpoint_every": 50 if comes_back else 4}
    result = train(config_of(shards, storage, "run", scale=scale, steps=int(steps), **intervals))
    print(f"done: step {result.last['step']}", flush=True)
    ray.shutdown()
    for node in new_nodes:
        node.terminate()
        node.wait()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
