"""Join the Ray cluster that RAY_ADDRESS names, or start one on this machine."""

import logging
import os
import re
import socket
import time
from typing import Any

import ray
from ray.exceptions import RuntimeEnvSetupError

from xactor_platform.cluster.local import free_port
from xactor_platform.cluster.upload import PY_MODULES_MAX_BYTES, check_upload

# Seconds in which a cluster must accept a connection.
_ANSWER_S = 10


def connect(py_modules: list[str]) -> None:
    """Join the cluster that RAY_ADDRESS names. If RAY_ADDRESS is not set, start a cluster on this machine.

    Ray sets RAY_ADDRESS in a job that is submitted with `ray job submit`.

    Args:
        py_modules: folders of code that the cluster's workers need.

    Raises:
        ValueError: nothing answers at RAY_ADDRESS, or a folder is too large for Ray to upload.
    """
    if "RAY_ADDRESS" in os.environ:
        _check_answers(os.environ["RAY_ADDRESS"])
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


def _check_answers(address: str) -> None:
    """Raise ValueError if nothing listens at a cluster's address. Ray itself would try for more than ten minutes.

    Only addresses with a host and a port are checked. Ray finds `auto` and `local` by itself.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address)
    if not found:
        return
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_S).close()
            return
        # UnicodeError: the host's name is malformed. OverflowError: there is no such port.
        except (OSError, UnicodeError, OverflowError) as error:
            # The cluster may be starting.
            if isinstance(error, OSError) and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise ValueError(
                f"RAY_ADDRESS is {address}, but no cluster answers there ({error}): start it, or unset RAY_ADDRESS"
            ) from error
