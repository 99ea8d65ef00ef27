"""Join the Ray cluster that this process is meant for, or start one on this machine."""

import logging
import os
from typing import Any

import ray
from ray.exceptions import RuntimeEnvSetupError

from xactor_platform.cluster.local import free_port
from xactor_platform.cluster.upload import PY_MODULES_MAX_BYTES, check_upload


def connect(py_modules: list[str]) -> None:
    """Join the cluster that RAY_ADDRESS names, as in a submitted job, or start one on this machine.

    Args:
        py_modules: folders of code that the cluster's workers need.

    Raises:
        ValueError: a folder is too large for Ray to upload.
    """
    # Without this, Ray Train shows every printed line twice.
    env = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    os.environ.update(env)
    started: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        # Ray would otherwise look for the cluster in a file that the last one left, and wait minutes for a cluster
        # that has ended. Its subprocesses do so too, when a training ends.
        started["dashboard_port"] = port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            runtime_env={"py_modules": py_modules, "env_vars": env},
            logging_level=logging.WARNING,
            **started,
        )
    except RuntimeEnvSetupError:
        ray.shutdown()
        for folder in py_modules:
            check_upload(folder, PY_MODULES_MAX_BYTES)
        raise
    logging.getLogger("ray.data").setLevel(logging.WARNING)
