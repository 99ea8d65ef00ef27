"""Join the Ray cluster that RAY_ADDRESS names, or start one on this machine."""

import logging
import os
from typing import Any

import ray
from ray.exceptions import RuntimeEnvSetupError

from xactor_platform.cluster.local import free_port
from xactor_platform.cluster.upload import PY_MODULES_MAX_BYTES, check_upload


def connect(py_modules: list[str]) -> None:
    """Join the cluster that RAY_ADDRESS names. If RAY_ADDRESS is not set, start a cluster on this machine.

    Ray sets RAY_ADDRESS in a job that is submitted with `ray job submit`.

    Args:
        py_modules: folders of code that the cluster's workers need.

    Raises:
        ValueError: a folder is too large for Ray to upload.
    """
    # Without this, Ray Train shows every printed line twice.
    env = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    os.environ.update(env)
    options_of_new_cluster: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        # Give Ray the dashboard's address. Otherwise Ray takes the address from a file that an earlier cluster left,
        # and waits minutes for that cluster, which has ended. When a training ends, Ray's subprocesses would do the
        # same, so they get the address from the environment.
        port = free_port()
        options_of_new_cluster["dashboard_port"] = port
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            runtime_env={"py_modules": py_modules, "env_vars": env},
            logging_level=logging.WARNING,
            **options_of_new_cluster,
        )
    except RuntimeEnvSetupError:
        ray.shutdown()
        # If a folder is too large, check_upload raises an error that names the folder's largest entry.
        for folder in py_modules:
            check_upload(folder, PY_MODULES_MAX_BYTES)
        raise
    logging.getLogger("ray.data").setLevel(logging.WARNING)
